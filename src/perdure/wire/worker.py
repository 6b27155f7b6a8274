"""A worker's end of one connection: feed it frames, take tasks; it makes the frames to send.

A worker that lost its connection makes a new one of these: nothing of the old one is of use.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import structs

from perdure.wire import frames
from perdure.wire import table as t
from perdure.wire.frames import BadPayload, Frame, TooLarge
from perdure.wire.message_cache import MessageCache
from perdure.wire.registration import Registration
from perdure.wire.results import CACHE_MISS, Result
from perdure.wire.tasks import LlmTask, ToolTask

JOIN_REF = "1"


class Joined(msgspec.Struct, frozen=True):
    """The server let the worker in; `features` are those that it knows as well."""

    features: frozenset[str]


class JoinRefused(msgspec.Struct, frozen=True):
    """The server keeps the worker out. `already_claimed` may change; other reasons do not."""

    reason: str
    code: str | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    """The server has the results of these tasks."""

    task_ids: tuple[str, ...]


class Replied(msgspec.Struct, frozen=True):
    """The server answered the frame with this `ref`."""

    ref: str
    ok: bool
    response: Any


class Closed(msgspec.Struct, frozen=True):
    """The server ended the channel; `crashed` if it did so by mistake. Connect anew."""

    crashed: bool = False


WorkerFact = (
    Joined
    | JoinRefused
    | LlmTask
    | ToolTask
    | t.Cancel
    | t.Proceed
    | t.GardDestroyed
    | t.KeyRevoked
    | Acknowledged
    | Replied
    | Closed
)


class _Reply(msgspec.Struct, frozen=True):
    status: str
    response: Any = None


class _Named(msgspec.Struct, frozen=True):
    """What is needed of a task that cannot be read; the rest of it may be anything."""

    task_id: str


class WorkerSide:
    """One connection of a worker. `registration.features` are what it would like to use."""

    def __init__(self, registration: Registration) -> None:
        self.state: t.State = "new"
        self.features: frozenset[str] = frozenset()
        self._registration = registration
        self._ref = 0
        self._results: dict[str, tuple[str, ...]] = {}
        self._cache = MessageCache()

    def feed(self, text: str | bytes) -> list[str | WorkerFact]:
        """Return the frames to send and the facts that a text message causes. Raises `BadFrame`."""
        frame = frames.decode(text, self._registration.frame_bytes_max)
        if frame.event == t.REPLY:
            return self._replied(frame)
        if frame.topic != t.WORKER_TOPIC or self.state not in ("joined", "draining"):
            return []
        if frame.event in (t.CLOSE, t.CRASH):
            self.state = "left"
            return [Closed(crashed=frame.event == t.CRASH)]
        return self._told(frame)

    # ------------------------------------------------------------------------------ what it says

    def join(self) -> str:
        """Return the frame that asks to join: the first one on a connection."""
        self.state = "joining"
        return frames.encode(
            JOIN_REF, self._next_ref(), t.WORKER_TOPIC, t.JOIN, _said(self._registration)
        )

    def result(self, result: Result) -> str:
        """Return the frame that brings a result. Raises `TooLarge` if no server would take it."""
        text = self._say("tool_result", result, frames.SERVER_FRAME_BYTES_MAX)
        self._results[str(self._ref)] = (result.task_id,)
        return text

    def results(self, results: tuple[Result, ...]) -> list[str]:
        """Return the frames that bring several results, one frame where the server can.

        Raises `TooLarge` if one alone is too large for any server.
        """
        if len(results) > 1 and "results" in self.features:
            try:
                text = self._say("results", t.Results(results), frames.SERVER_FRAME_BYTES_MAX)
            except TooLarge:
                return [self.result(result) for result in results]
            self._results[str(self._ref)] = tuple(result.task_id for result in results)
            return [text]
        return [self.result(result) for result in results]

    def begin(self, task_id: str) -> str:
        """Return the frame that asks whether a `once` call may begin: see `Proceed`."""
        return self._say("begin", t.Begin(task_id))

    def text(self, pieces: dict[str, str]) -> list[str]:
        """Return the frame that tells pieces of replies, by task; nothing, if nobody wants them."""
        return [self._tell("text", t.Text(pieces))] if "text" in self.features else []

    def progress(self, task_id: str, progress: Any = None) -> list[str]:
        """Return the frame that says that a task is alive; nothing, if nobody wants it."""
        if "progress" not in self.features:
            return []
        return [self._tell("progress", t.Progress(task_id, progress))]

    def credit(self, tasks: int) -> list[str]:
        """Return the frame that grants so many tasks more; nothing, if nobody counts them."""
        return [self._tell("credit", t.Credit(tasks))] if "credit" in self.features else []

    def holds(self, task_ids: tuple[str, ...]) -> list[str]:
        """Return the frame that names the tasks that the worker is at; nothing, if nobody asks."""
        return [self._tell("holds", t.Holds(task_ids))] if "holds" in self.features else []

    def register_port(
        self, internal_port: int, name: str = "", protocol: str = "http", url: str | None = None
    ) -> tuple[str, str]:
        """Return the frame that tells of a port, after the ref that its `Replied` will bear."""
        told = {"internal_port": internal_port, "name": name, "protocol": protocol}
        frame = self._say("register_port", told if url is None else {**told, "url": url})
        return str(self._ref), frame

    def drain(self) -> str:
        """Return the frame that asks for nothing new; results may follow."""
        self.state = "draining"
        return self._say("drain", {})

    def leave(self) -> str:
        """Return the last frame; the server answers with a reply and `Closed`."""
        return self._say(t.LEAVE, {})

    def heartbeat(self) -> str:
        """Return the frame that keeps the connection: one at least every 30 s."""
        return frames.encode(None, self._next_ref(), t.PHOENIX_TOPIC, t.HEARTBEAT, {})

    # ----------------------------------------------------------------------------------- inside

    def _next_ref(self) -> str:
        self._ref += 1
        return str(self._ref)

    def _say(self, event: str, payload: Any, bytes_max: int | None = None) -> str:
        return frames.encode(JOIN_REF, self._next_ref(), t.WORKER_TOPIC, event, payload, bytes_max)

    @staticmethod
    def _tell(event: str, payload: Any) -> str:
        return frames.encode(JOIN_REF, None, t.WORKER_TOPIC, event, payload)

    def _replied(self, frame: Frame) -> list[str | WorkerFact]:
        try:
            reply = frames.payload_as(frame, _replies)
        except BadPayload:
            reply = _Reply("error")
        ok = reply.status == "ok"
        if self.state == "joining" and frame.topic == t.WORKER_TOPIC:
            return [self._joined(reply, ok)]
        if frame.topic != t.WORKER_TOPIC or frame.ref is None:
            return []
        task_ids = self._results.pop(frame.ref, None)
        if task_ids is not None:
            # An error reply is final as well: the same frame would be refused again.
            return [Acknowledged(task_ids)]
        return [Replied(frame.ref, ok, reply.response)]

    def _joined(self, reply: _Reply, ok: bool) -> WorkerFact:
        told = reply.response if isinstance(reply.response, dict) else {}
        if not ok:
            self.state = "left"
            code = told.get("code")
            reason = str(told.get("reason", "no reason was given"))
            return JoinRefused(reason, code if isinstance(code, str) else None)
        self.state = "joined"
        named = told.get("features")
        known = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        self.features = self._registration.features.intersection(known)
        self._cache = MessageCache.of(self.features)
        return Joined(self.features)

    def _told(self, frame: Frame) -> list[str | WorkerFact]:
        """Return what the server tells on the worker's channel."""
        rule = t.PUSHES.get(frame.event)
        if rule is None:
            return []
        try:
            payload = frames.payload_as(frame, _DECODERS[rule.payload])
        except BadPayload as bad:
            return self._unreadable(frame, bad)
        if isinstance(payload, t.Tasks):
            return [
                thing
                for event, body in payload.tasks
                if event in t.TASKS
                for thing in self._told(structs.replace(frame, event=event, payload=body))
            ]
        return self._with_messages(payload) if isinstance(payload, LlmTask) else [payload]

    def _with_messages(self, task: LlmTask) -> list[str | WorkerFact]:
        """Return a task with all its messages, or ask for them."""
        if isinstance(task.messages_delta, msgspec.UnsetType):
            if isinstance(task.messages, msgspec.UnsetType):
                return [self._failed(task.task_id, "the task has no messages")]
            if task.purpose != "compact":
                self._cache.keep(task.run_id, task.messages)
            return [task]
        messages = self._cache.applied(task.run_id, task.messages_delta)
        if messages is None:
            return [self._failed(task.task_id, CACHE_MISS)]
        return [structs.replace(task, messages=messages, messages_delta=msgspec.UNSET)]

    def _unreadable(self, frame: Frame, bad: BadPayload) -> list[str | WorkerFact]:
        """Answer a task that cannot be read, so that nobody waits for it."""
        try:
            named = _named.decode(frame.payload)
        except msgspec.DecodeError:
            return []
        return [self._failed(named.task_id, str(bad))]

    def _failed(self, task_id: str, why: str) -> str:
        return self.result(Result(task_id=task_id, status="error", error=why))


def _said(registration: Registration) -> dict[str, Any]:
    """Return the payload of a join. Sets have no order; frames do."""
    said: dict[str, Any] = msgspec.to_builtins(registration)
    said["features"] = sorted(registration.features)
    said["capabilities"] = list(registration.capabilities)
    for tool, offer in zip(said["tools"], registration.tools, strict=True):
        tool["side_effect"] = offer.side_effect
    return said


_replies = msgspec.json.Decoder(_Reply)
_named = msgspec.json.Decoder(_Named)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    rule.payload: msgspec.json.Decoder(rule.payload) for rule in t.PUSHES.values()
}
