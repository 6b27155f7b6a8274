"""A server's end of one connection: feed it frames, send what it returns, act on the rest.

`feed` returns texts, which are frames to send as they are, and facts, which are for the server. A
join is a fact; the channel exists once the server accepts it, and its reply is the first frame on
it. Feed the next frame when the facts of the last one were acted on, as Phoenix does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal

import msgspec

from perdure.wire import frames
from perdure.wire import table as t
from perdure.wire.frames import FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX, BadPayload, Frame
from perdure.wire.registration import (
    NORNS_FEATURES,
    InvalidRegistration,
    Registration,
    read_registration,
)
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask

CHANNELS_MAX = 1_000
"""Topics that one connection may have joined at once."""

_BETWEEN_BYTES = len('["tool_task",],')

UNMATCHED = "unmatched topic"


class Ticket(msgspec.Struct, frozen=True):
    """What a reply needs to know of the frame that it answers."""

    topic: str
    join_ref: str | None
    ref: str | None


class WorkerJoins(msgspec.Struct, frozen=True):
    """A worker asks to join; answer with `accept_join` or `refuse_join`."""

    ticket: Ticket
    registration: Registration


class AgentJoins(msgspec.Struct, frozen=True):
    """A client asks for an agent's channel; answer with `accept_join` or `refuse_join`."""

    ticket: Ticket
    agent_id: str


class PortAsked(msgspec.Struct, frozen=True):
    """A worker has opened a port; answer with `reply` or `refuse`."""

    ticket: Ticket
    port: t.Port


class MessageAsked(msgspec.Struct, frozen=True):
    """A client sends an agent a message; answer with `reply` or `refuse`."""

    ticket: Ticket
    agent_id: str
    message: t.Message


class Left(msgspec.Struct, frozen=True):
    """A channel is over: its peer left it, or joined it anew."""

    topic: str


Fact = (
    WorkerJoins
    | AgentJoins
    | PortAsked
    | MessageAsked
    | Left
    | Result
    | t.Drain
    | t.Text
    | t.Progress
    | t.Begin
    | t.Credit
    | t.Holds
)


class _Channel:
    """A topic of this connection, from its first join on."""

    __slots__ = ("features", "frame_bytes_max", "join_ref", "replaced", "state", "ticket")

    def __init__(self) -> None:
        self.state: t.State = "new"
        self.join_ref: str | None = None
        self.ticket: Ticket | None = None
        self.features: frozenset[str] = frozenset()
        self.frame_bytes_max: int | None = None
        self.replaced: str | None = None


class ServerSide:
    """One connection to the worker socket or to the agent socket.

    `frame_bytes_max` is what one frame may have at most in bytes.
    """

    def __init__(
        self,
        serves: Literal["worker", "agent"],
        frame_bytes_max: int = SERVER_FRAME_BYTES_MAX,
    ) -> None:
        self._serves = serves
        self._frame_bytes_max = frame_bytes_max
        self._channels: dict[str, _Channel] = {}
        self._gathered: list[tuple[str, msgspec.Raw]] = []
        self._gathered_bytes = 0
        self._full: list[str] = []

    def state(self, topic: str) -> t.State:
        """Return the state of a channel."""
        channel = self._channels.get(topic)
        return channel.state if channel else "new"

    def feed(self, text: str | bytes) -> list[str | Fact]:
        """Return the frames and facts that a text message causes. Raises `BadFrame`."""
        frame = frames.decode(text, self._frame_bytes_max)
        kind = t.channel_of(frame.topic)
        if kind not in (self._serves, "phoenix"):
            return self._error(frame, UNMATCHED)
        if kind != "phoenix" and frame.event == t.JOIN:
            return self._join(frame)
        state = self.state(frame.topic)
        if kind != "phoenix" and state not in ("joined", "draining"):
            return self._error(frame, UNMATCHED)
        channel = self._channels.get(frame.topic) or _Channel()
        rule = t.HEARS[kind].get(frame.event)
        if rule is None or (rule.feature and rule.feature not in channel.features):
            return self._error(frame, f"unknown event {frame.event!r}")
        if state not in rule.states:
            return self._error(frame, f"{frame.event!r} may not be said while {state}")
        try:
            payload = frames.payload_as(frame, _DECODERS[rule.payload])
        except BadPayload as bad:
            return self._error(frame, str(bad))
        if rule.moves_to is not None:
            channel.state = rule.moves_to
        return self._heard(frame, channel, rule, payload)

    # -------------------------------------------------------------------------- answers to facts

    def accept_join(self, joins: WorkerJoins | AgentJoins) -> list[str]:
        """Let a peer in; returns the frames to send before any other. None, if it joined again."""
        channel = self._awaited(joins.ticket)
        if channel is None:
            return []
        channel.state, channel.join_ref = "joined", joins.ticket.join_ref
        response: dict[str, Any] = {}
        if isinstance(joins, WorkerJoins):
            channel.features = joins.registration.features
            channel.frame_bytes_max = joins.registration.frame_bytes_max
            if channel.features - NORNS_FEATURES:
                response["features"] = sorted(channel.features)
        return [_reply(joins.ticket, "ok", response), *_closed(joins.ticket.topic, channel)]

    def refuse_join(
        self, joins: WorkerJoins | AgentJoins, reason: str, code: str | None = None
    ) -> list[str]:
        """Keep a peer out. For a worker of Norns every reason but `already_claimed` is its end."""
        channel = self._awaited(joins.ticket)
        if channel is None:
            return []
        channel.state = "left"
        response = {"reason": reason} if code is None else {"reason": reason, "code": code}
        return [
            _reply(joins.ticket, "error", response),
            *_closed(joins.ticket.topic, channel),
        ]

    @staticmethod
    def reply(ticket: Ticket, response: Any = None) -> list[str]:
        """Return the ok to a fact that bears a ticket; nothing, if its peer wants no reply."""
        return [] if ticket.ref is None else [_reply(ticket, "ok", response or {})]

    @staticmethod
    def refuse(ticket: Ticket, reason: Any) -> list[str]:
        """Return the error to a fact that bears a ticket; nothing, if its peer wants no reply."""
        return [] if ticket.ref is None else [_reply(ticket, "error", {"reason": reason})]

    # ------------------------------------------------------------------------------------ pushes

    def tell(self, payload: Any) -> list[str]:
        """Return the frame that tells a worker `payload`: one of `table.PUSHES`.

        Nothing, if the worker is not here or did not ask for such frames. Raises `TooLarge` if it
        would not take one of this size.
        """
        channel = self._channels.get(t.WORKER_TOPIC)
        if channel is None or channel.state not in ("joined", "draining"):
            return []
        event = t.EVENT_OF[type(payload)]
        features = t.PUSHES[event].features
        if features and channel.features.isdisjoint(features):
            return []
        size = channel.frame_bytes_max
        return [
            *self.gathered(),
            frames.encode(channel.join_ref, None, t.WORKER_TOPIC, event, payload, size),
        ]

    def gather(self, payload: LlmTask | ToolTask) -> bool:
        """Keep a task for the next `gathered`; False if its worker wants it in its own frame."""
        channel = self._channels.get(t.WORKER_TOPIC)
        if channel is None or channel.state != "joined" or "tasks" not in channel.features:
            return False
        body = frames.encode_payload(payload)
        size_max = channel.frame_bytes_max or FRAME_BYTES_MAX
        if len(body) > size_max // 2:
            return False
        self._gathered.append((t.EVENT_OF[type(payload)], msgspec.Raw(body)))
        self._gathered_bytes += len(body) + _BETWEEN_BYTES
        if self._gathered_bytes > size_max // 2:
            self._full += self._together(channel)
        return True

    def gathered(self) -> list[str]:
        """Return the frames of the tasks that were gathered; `tell` puts them before its own."""
        channel = self._channels.get(t.WORKER_TOPIC)
        full, self._full = self._full, []
        if self._gathered and channel is not None and channel.state in ("joined", "draining"):
            full += self._together(channel)
        self._gathered.clear()
        return full

    def _together(self, channel: _Channel) -> list[str]:
        gathered, self._gathered = tuple(self._gathered), []
        self._gathered_bytes = 0
        told = t.Tasks(gathered)
        return [frames.encode(channel.join_ref, None, t.WORKER_TOPIC, "tasks", told)]

    def push(self, topic: str, event: str, payload: Any) -> list[str]:
        """Return the frame that tells a client of an agent's channel what happened."""
        channel = self._channels.get(topic)
        if channel is None or channel.state != "joined":
            return []
        return [frames.encode(channel.join_ref, None, topic, event, payload)]

    def close(self, topic: str) -> list[str]:
        """End a channel from here; returns the frame that says so."""
        channel = self._channels.get(topic)
        if channel is None or channel.state not in ("joined", "draining"):
            return []
        channel.state = "left"
        return [_close(topic, channel.join_ref)]

    # ----------------------------------------------------------------------------------- inside

    def _join(self, frame: Frame) -> list[str | Fact]:
        channel = self._channels.get(frame.topic)
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX and not self._forget_left():
                return self._error(frame, f"more than {CHANNELS_MAX} topics on one connection")
            channel = self._channels[frame.topic] = _Channel()
        found: list[str | Fact] = []
        if channel.state in ("joined", "draining"):
            found.append(Left(frame.topic))
            if channel.join_ref not in (None, frame.join_ref):
                channel.replaced = channel.join_ref
        ticket = channel.ticket = Ticket(frame.topic, frame.join_ref, frame.ref)
        channel.state = "joining"
        if self._serves == "agent":
            found.append(AgentJoins(ticket, frame.topic.removeprefix(t.AGENT_PREFIX)))
            return found
        try:
            payload = frames.payload_as(frame, _objects)
        except BadPayload:
            payload = {}
        registration = read_registration(payload)
        if isinstance(registration, InvalidRegistration):
            channel.state = "left"
            response = {
                "reason": "invalid_registration",
                "code": registration.code,
                "detail": registration.detail,
            }
            return [*found, _reply(ticket, "error", response), *_closed(frame.topic, channel)]
        return [*found, WorkerJoins(ticket, registration)]

    def _forget_left(self) -> bool:
        """Drop the channels that are over; say whether there were any."""
        over = [topic for topic, channel in self._channels.items() if channel.state == "left"]
        for topic in over:
            del self._channels[topic]
        return bool(over)

    def _heard(
        self, frame: Frame, channel: _Channel, rule: t.Hears, payload: Any
    ) -> list[str | Fact]:
        ticket = Ticket(frame.topic, channel.join_ref, frame.ref)
        if rule.answered_by == "server":
            if isinstance(payload, t.Port):
                return [PortAsked(ticket, payload)]
            agent_id = frame.topic.removeprefix(t.AGENT_PREFIX)
            return [MessageAsked(ticket, agent_id, payload)]
        answer: list[str | Fact] = [] if frame.ref is None else [_reply(ticket, "ok", {})]
        if isinstance(payload, t.Results):
            return [*answer, *payload.results]
        if frame.event == t.LEAVE:
            return [*answer, _close(frame.topic, channel.join_ref), Left(frame.topic)]
        return answer if isinstance(payload, t.Nothing) else [*answer, payload]

    def _error(self, frame: Frame, reason: str) -> list[str | Fact]:
        if frame.ref is None and frame.event != t.JOIN:
            return []
        joined = self._channels.get(frame.topic)
        join_ref = joined.join_ref if joined else frame.join_ref
        return [_reply(Ticket(frame.topic, join_ref, frame.ref), "error", {"reason": reason})]

    def _awaited(self, ticket: Ticket) -> _Channel | None:
        """Return the channel whose last join this is, if it was not answered yet."""
        channel = self._channels.get(ticket.topic)
        if channel is None or channel.ticket is not ticket or channel.state != "joining":
            return None
        return channel


def _reply(ticket: Ticket, status: str, response: Any) -> str:
    body = {"status": status, "response": response}
    return frames.encode(ticket.join_ref, ticket.ref, ticket.topic, t.REPLY, body)


def _close(topic: str, join_ref: str | None) -> str:
    return frames.encode(join_ref, join_ref, topic, t.CLOSE, {})


def _closed(topic: str, channel: _Channel) -> Iterable[str]:
    """Return the close of the channel that a join replaced, once."""
    replaced, channel.replaced = channel.replaced, None
    return () if replaced is None else (_close(topic, replaced),)


def _decoders(payloads: Collection[type]) -> dict[type, msgspec.json.Decoder[Any]]:
    return {payload: msgspec.json.Decoder(payload) for payload in payloads}


_DECODERS = _decoders({rule.payload for rules in t.HEARS.values() for rule in rules.values()})
_objects = msgspec.json.Decoder(dict[str, Any])
