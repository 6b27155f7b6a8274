"""The backlog: tasks for which no connected worker has room, by what they need."""

from __future__ import annotations

from collections.abc import Iterator

from perdure.core.ids import SessionId
from perdure.server.held import Held
from perdure.server.members import Member, Need


class Backlog:
    """Tasks that wait for a worker, found by need and by session."""

    def __init__(self) -> None:
        self._by_need: dict[Need, dict[str, Held]] = {}
        self._by_session: dict[SessionId, dict[str, Held]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_need)

    def __iter__(self) -> Iterator[Held]:
        for waiting in self._by_need.values():
            yield from waiting.values()

    def has(self, held: Held) -> bool:
        """Say whether a task waits."""
        return held.id in self._by_need.get(held.need, ())

    def waits(self, need: Need) -> bool:
        """Say whether a task with this need waits."""
        return need in self._by_need

    def with_need(self, need: Need) -> Iterator[Held]:
        """Yield the tasks with a need, oldest first."""
        yield from tuple(self._by_need.get(need, {}).values())

    def add(self, held: Held) -> None:
        """Let a task wait, behind those before it."""
        self._by_need.setdefault(held.need, {})[held.id] = held
        self._by_session.setdefault(held.task.session, {})[held.id] = held

    def drop(self, held: Held) -> None:
        """Let a task wait no more; harmless if it does not."""
        waiting = self._by_need.get(held.need, {})
        if waiting.pop(held.id, None) is None:
            return
        if not waiting:
            del self._by_need[held.need]
        of_session = self._by_session[held.task.session]
        del of_session[held.id]
        if not of_session:
            del self._by_session[held.task.session]

    def take(self, member: Member) -> Held | None:
        """Return, and drop, the task that waits longest of those that a worker fits."""
        first = [
            next(iter(waiting.values()))
            for need, waiting in self._by_need.items()
            if member.fits(need)
        ]
        if not first:
            return None
        held = min(first, key=lambda one: one.number)
        self.drop(held)
        return held

    def of(self, session: SessionId) -> list[Held]:
        """Return the tasks of a session, in the order in which they came to wait."""
        return list(self._by_session.get(session, {}).values())
