"""The pool's tasks: all of them by id, those without a worker, and what workers came back with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec

from perdure.core.ids import SessionId
from perdure.ports.workers import Task
from perdure.server.backlog import Backlog
from perdure.server.held import Held
from perdure.server.members import Need
from perdure.server.returning import Returning


class Waiting(msgspec.Struct, frozen=True):
    """A call for which no worker has room; `needs` says in words who could take it.

    `fitting` is how many such workers are connected: with none, one has to be started. With
    `until_ms` it is one worker that is expected to come back until then.
    """

    call: str
    needs: str
    since_ms: int
    fitting: int
    until_ms: int | None = None


class Queues:
    """What a pool holds.

    `fitting` returns how many connected workers fit a need, `wanted` says who would fit it.
    """

    def __init__(self, fitting: Callable[[Need], int], wanted: Callable[[Need], str]) -> None:
        self._fitting = fitting
        self._wanted = wanted
        self.held: dict[str, Held] = {}
        self.backlog = Backlog()
        """Tasks that no worker has."""
        self.expected = Backlog()
        """Tasks whose worker is waited for."""
        self.returning = Returning()

    def waiting_for(self, session: SessionId) -> tuple[Waiting, ...]:
        """Return the calls of a session that wait for a worker, oldest first."""
        waiting = []
        for held in self.backlog.of(session):
            needs, fitting = self._wanted(held.need), self._fitting(held.need)
            waiting.append(Waiting(held.task.call, needs, held.since_ms, fitting))
        for held in self.expected.of(session):
            who = "the worker" if held.expects is None else f"worker {held.expects!r}"
            needs = f"{who} that has it, to come back"
            waiting.append(Waiting(held.task.call, needs, held.since_ms, 0, held.until_ms))
        return tuple(waiting)

    def of_ours(self, task_id: str) -> Held | None:
        """Return a task of a session that this node runs."""
        held = self.held.get(task_id)
        return None if held is None or held.borrowed else held

    def is_unbegun(self, held: Held) -> bool:
        """Say whether a task waits that nobody was given, and for which nobody asked to begin."""
        return held.begin == "unasked" and self.backlog.has(held)

    def at_a_worker(self, task_id: str) -> Held | None:
        """Return a task that a worker of this node has."""
        held = self.held.get(task_id)
        return None if held is None or held.owner is None or held.owner.is_node else held

    def begun_here(self, task_id: str, task: Task, by: str) -> Held | None:
        """Return this attempt at a call if `by`, who may act (empty: whoever it is), has it."""
        held = self.at_a_worker(task_id)
        if held is None or held.owner is None or not held.is_of(task):
            return None
        return held if not by or held.owner.runs(by) else None

    def wanting(self) -> tuple[list[Need], list[str]]:
        """Return what tasks without a worker need, and the tasks whose worker is waited for."""
        needs = {held.need for held in self.backlog if not held.borrowed}
        return list(needs), [held.id for held in self.expected if not held.borrowed]

    def waiting(self, need: Need, limit: int) -> list[Held]:
        """Return up to `limit` tasks with a need that have no worker, oldest first."""
        found = (held for held in self.backlog.with_need(need) if not held.borrowed)
        return list(islice(found, limit))

    def has_returned(self, task_id: str) -> bool:
        """Say whether a worker came back with a task that nobody here has asked for."""
        return self.returning.knows(task_id)
