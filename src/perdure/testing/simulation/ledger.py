"""What really happened: the far ends of the effects, and what clients were told.

The ledger is outside the system under test. A tool writes to it at the moment it acts, and nothing
that a node forgets is forgotten here. The far end of an `idempotent` tool honours its key; that of
a `once` tool, asked by a probe or a person, tells the truth, and refuses from then on what was
still under way: only so can "it did not happen" be said of anything.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from perdure.core.agent import Effect
from perdure.core.ids import SessionId
from perdure.worker import ToolContext

Call = tuple[SessionId, str]


class Entry(NamedTuple):
    """A line: `what` is started, effect, repeated (by key), refused (by the far end) or probed."""

    at_us: int
    what: str
    tool: str
    session: SessionId
    call: str
    attempt: int
    key: str
    life: str


class Operation:
    """One thing a client asked: `status` is invoked, ok, failed, or in doubt."""

    __slots__ = ("at_us", "detail", "kind", "life", "status", "subject")

    def __init__(self, at_us: int, kind: str, life: str, subject: tuple[Any, ...]) -> None:
        self.at_us = at_us
        self.kind = kind
        self.life = life
        self.subject = subject
        self.status = "invoked"
        self.detail: Any = None

    def line(self) -> tuple[Any, ...]:
        """Return it for the digest."""
        return self.at_us, self.kind, self.life, self.subject, self.status, self.detail


class Ledger:
    """The far ends, and a line for everything they saw."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.operations: list[Operation] = []
        self.executions: Counter[tuple[SessionId, str, int]] = Counter()
        self.effects: Counter[Call] = Counter()
        self.keys: dict[str, Call] = {}
        self.by_class: Counter[str] = Counter()
        self.refused = 0
        self._voided: dict[Call, int] = {}
        self._done: set[str] = set()

    def started(self, at_us: int, tool: str, context: ToolContext, life: str) -> None:
        """A tool was entered."""
        self._write(at_us, "started", tool, context, life)
        self.executions[context.session, context.call, context.attempt] += 1

    def act(self, at_us: int, tool: str, effect: Effect, context: ToolContext, life: str) -> str:
        """The far end is asked to act; return what it did: effect, repeated or refused."""
        call = (context.session, context.call)
        what = "effect"
        if effect == "idempotent" and context.key in self._done:
            what = "repeated"
        elif effect == "once" and self._voided.get(call, 0) >= context.attempt:
            what = "refused"
        if what == "effect" and effect != "read":
            self._done.add(context.key)
            self.keys[context.key] = call
            self.effects[call] += 1
        self.by_class[effect] += what == "effect"
        self.refused += what == "refused"
        self._write(at_us, what, tool, context, life)
        return what

    def happened(self, call: Call, attempt: int) -> bool:
        """Tell the truth about a call; what has not happened up to this attempt never will."""
        if self.effects[call]:
            return True
        self._voided[call] = max(attempt, self._voided.get(call, 0))
        return False

    def probed(self, at_us: int, tool: str, context: ToolContext, life: str) -> None:
        """A probe was asked."""
        self._write(at_us, "probed", tool, context, life)

    def _write(self, at_us: int, what: str, tool: str, context: ToolContext, life: str) -> None:
        self.entries.append(
            Entry(
                at_us,
                what,
                tool,
                context.session,
                context.call,
                context.attempt,
                context.key,
                life,
            )
        )
