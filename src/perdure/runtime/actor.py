"""An active session: an object with a mailbox. No task, no lock, no queue of its own."""

from __future__ import annotations

from perdure.core.agent import Definition
from perdure.core.commands import Report, SendMessage
from perdure.core.history import History
from perdure.core.ids import SessionId
from perdure.core.state import State
from perdure.ports.clock import Timer
from perdure.ports.session_store import Token
from perdure.ports.workers import Task, Worker


class InFlight:
    """A task that a worker has.

    `asked` once the worker asked to begin, `begun` once that is durable and the task may run. One
    whose session was lost has no `actor`, and keeps the last `report` for whoever loads it again.
    """

    __slots__ = ("actor", "asked", "attempt", "begun", "probing", "report", "task", "worker")

    def __init__(
        self, actor: Actor, task: Task, worker: Worker, attempt: int, probing: bool
    ) -> None:
        self.actor: Actor | None = actor
        self.report: Report | None = None
        self.task = task
        self.worker = worker
        self.attempt = attempt
        self.probing = probing
        self.asked = False
        self.begun = False


class Actor:
    """A claimed session with its state, decided ahead of what is durable.

    `submitted` counts the step commits that are under way; what follows from the state is done
    only when there are none. `gone` is set when the claim is lost or given up: whatever comes for
    it after that is dropped.
    """

    __slots__ = (
        "agent",
        "alarm",
        "alarm_at",
        "gone",
        "head",
        "history",
        "history_loading",
        "idle_since",
        "inflight",
        "offered",
        "session",
        "snapshot_version",
        "state",
        "submitted",
        "token",
        "waiting",
    )

    def __init__(
        self,
        session: SessionId,
        agent: Definition,
        token: Token,
        state: State,
        head: bytes,
        snapshot_version: int,
    ) -> None:
        self.session = session
        self.agent = agent
        self.token = token
        self.state = state
        self.head = head
        self.snapshot_version = snapshot_version
        self.history: History | None = None
        self.history_loading = False
        self.waiting: dict[str, SendMessage] = {}
        self.offered: set[str] = set()
        self.inflight: dict[str, InFlight] = {}
        self.alarm: Timer | None = None
        self.alarm_at: int | None = None
        self.idle_since = 0
        self.submitted = 0
        self.gone = False
