"""Who may say what when.

`HEARS` is what a server takes on a channel, `PUSHES` what it says there unasked. What is not in the
table gets an error reply from the server and silence from a worker, and closes nothing. Frames that
bear no `ref` get no reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask

State = Literal["new", "joining", "joined", "draining", "left"]
Channel = Literal["worker", "agent", "phoenix"]

WORKER_TOPIC = "worker:lobby"
AGENT_PREFIX = "agent:"
PHOENIX_TOPIC = "phoenix"

JOIN, LEAVE, REPLY, CLOSE, CRASH = "phx_join", "phx_leave", "phx_reply", "phx_close", "phx_error"
HEARTBEAT = "heartbeat"

# ------------------------------------------------------------------------------ said by the peer


class Results(msgspec.Struct, frozen=True):
    """Results of several tasks at once."""

    results: tuple[Result, ...]


class Drain(msgspec.Struct, frozen=True):
    """The worker takes nothing new, finishes what it has, and leaves."""


class Text(msgspec.Struct, frozen=True, gc=False):
    """Pieces of models' replies while they come, by task."""

    pieces: dict[str, str]


class Progress(msgspec.Struct, frozen=True, gc=False):
    """A task is alive, and how far it is, in the words of its tool."""

    task_id: str
    progress: Any = None


class Begin(msgspec.Struct, frozen=True, gc=False):
    """The worker holds a `once` call with valid arguments, and waits for `Proceed`."""

    task_id: str


class Holds(msgspec.Struct, frozen=True, gc=False):
    """All the tasks that the worker is at already, or has results of to bring, now that it joined.

    Said before any other word of them. What it does not name here, it has not.
    """

    task_ids: tuple[str, ...]


class Credit(msgspec.Struct, frozen=True, gc=False):
    """The worker can take so many tasks more. It grants none by joining."""

    tasks: int


class Port(msgspec.Struct, frozen=True):
    """A port on which the worker's gard serves something."""

    internal_port: Any = None
    name: Any = ""
    protocol: Any = None
    url: Any = None


class Message(msgspec.Struct, frozen=True):
    """A message to an agent, over its channel."""

    content: Any = None
    gard_id: Any = None


class Nothing(msgspec.Struct, frozen=True):
    """A payload in which nothing is looked for."""


# ---------------------------------------------------------------------------- said by the server


class Tasks(msgspec.Struct, frozen=True, gc=False):
    """Several tasks at once: the event and the payload of each, as if it had come alone."""

    tasks: tuple[tuple[str, msgspec.Raw], ...]


class Cancel(msgspec.Struct, frozen=True, gc=False):
    """A task is owed no more: stop it, report nothing of it."""

    task_id: str


class Proceed(msgspec.Struct, frozen=True, gc=False):
    """The beginning of a `once` call is durable: act."""

    task_id: str


class GardDestroyed(msgspec.Struct, frozen=True):
    """The worker's gard is no more; the worker ends."""


class KeyRevoked(msgspec.Struct, frozen=True):
    """The worker's key is no more; the worker ends."""


# --------------------------------------------------------------------------------------- the table


class Hears(msgspec.Struct, frozen=True):
    """An event from a peer: its payload, the states it may come in, and who answers it.

    `moves_to` is the channel's state afterwards; `feature` has to have been agreed on.
    """

    payload: type[msgspec.Struct]
    states: tuple[State, ...] = ("joined", "draining")
    moves_to: State | None = None
    answered_by: Literal["wire", "server"] = "wire"
    feature: str | None = None


class Pushes(msgspec.Struct, frozen=True):
    """An event from the server; it is said only to a peer that has one of `features`, if any."""

    payload: type[msgspec.Struct]
    features: tuple[str, ...] = ()


HEARS: Mapping[Channel, Mapping[str, Hears]] = {
    "worker": {
        "tool_result": Hears(Result),
        "results": Hears(Results, feature="results"),
        "drain": Hears(Drain, moves_to="draining"),
        "register_port": Hears(Port, answered_by="server"),
        "text": Hears(Text, feature="text"),
        "progress": Hears(Progress, feature="progress"),
        "begin": Hears(Begin, feature="begin"),
        "credit": Hears(Credit, ("joined",), feature="credit"),
        "holds": Hears(Holds, feature="holds"),
        LEAVE: Hears(Nothing, moves_to="left"),
    },
    "agent": {
        "send_message": Hears(Message, ("joined",), answered_by="server"),
        LEAVE: Hears(Nothing, ("joined",), moves_to="left"),
    },
    "phoenix": {HEARTBEAT: Hears(Nothing, ("new",))},
}
"""A join is heard in every state, and closes the channel that was joined before."""

PUSHES: Mapping[str, Pushes] = {
    "llm_task": Pushes(LlmTask),
    "tool_task": Pushes(ToolTask),
    "tasks": Pushes(Tasks, ("tasks",)),
    "gard_destroyed": Pushes(GardDestroyed),
    "key_revoked": Pushes(KeyRevoked),
    "cancel": Pushes(Cancel, ("cancel", "begin")),
    "proceed": Pushes(Proceed, ("begin",)),
}
"""To workers. To a client, an agent's channel carries whatever happens to that agent."""

TASKS = frozenset({"llm_task", "tool_task"})
"""Events that may come together in `tasks`."""

EVENT_OF: Mapping[type, str] = {rule.payload: event for event, rule in PUSHES.items()}


def channel_of(topic: str) -> Channel | None:
    """Return the kind of channel that a topic names; None if there is no such topic."""
    if topic == PHOENIX_TOPIC:
        return "phoenix"
    if topic == WORKER_TOPIC:
        return "worker"
    if topic.startswith(AGENT_PREFIX) and len(topic) > len(AGENT_PREFIX):
        return "agent"
    return None
