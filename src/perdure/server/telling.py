"""What a log tells of one run, to who asks again and again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from msgspec.structs import replace

from perdure.api import shapes
from perdure.api.projection import withdrawn_events
from perdure.api.timeline import Timeline, definition_of
from perdure.core.agent import AgentSpec
from perdure.core.events import MessageReceived, ModelCallIntended, RunStarted, SessionForked
from perdure.core.runs import RunRow
from perdure.runtime.tenancy import Tenancy
from perdure.server.numbers import Numbers

EVENTS_READ = 64
"""So many events of a run are in memory while somebody takes them slowly."""


class Source(Protocol):
    """Where logs and what they name are read: a tenant's desk."""

    runs: Tenancy
    specs: dict[str, AgentSpec]
    numbers: Numbers

    async def spec(self, digest: str | None) -> AgentSpec | None:
        """Have a definition at hand in `specs`, and return it."""
        ...

    async def meta(self, row: RunRow) -> dict[str, Any]:
        """Return what came with a run's message."""
        ...


class Telling:
    """What the log tells of one run: its timeline, its events, and how its message came.

    A `brief` one reads no more than the run: it does not know how many messages a model was shown.
    One reads it at a time.
    """

    def __init__(self, desk: Source, row: RunRow, *, brief: bool = False) -> None:
        self.timeline = Timeline(row.id, desk.specs, int(row.session.agent))
        self.meta: dict[str, Any] = {}
        self._desk = desk
        self._row = row
        self._at: int | None = None
        self._begun = False
        self._brief = brief

    @property
    def over(self) -> bool:
        """Whether nothing will be added any more."""
        return self.timeline.ended_at is not None

    async def read(self) -> AsyncGenerator[shapes.Event, None]:
        """Yield the events that were added since they were read last."""
        if self._row.started_seq is None and not self._begun:
            self._row = await self._desk.runs.row(self._row.id)
        found = withdrawn_events(self._row) if self._row.started_seq is None else []
        if found and not self.over:
            self.timeline.ended_at = self._row.ended_at
            for event in found:
                yield event
        if self._at is None:
            self._at = await self._beginning()
        if self.over:
            return
        async for item in self._desk.runs.read(self._row.session, self._at, EVENTS_READ):
            self._at = item.seq
            await self._desk.spec(definition_of(item.event))
            await self._meet(item.event)
            for event in self.timeline.feed(item.seq, item.event):
                self._begun = True
                yield await self._numbered(event)
            if self.timeline.ended_at is not None:
                return

    async def _numbered(self, event: shapes.Event) -> shapes.Event:
        """Name the run of a child as clients do, by its number."""
        payload = event.payload
        if "child_run_id" in payload:
            number = await self._desk.numbers.run(payload["child_run_id"])
            return replace(event, payload={**payload, "child_run_id": str(number)})
        if str(payload.get("kind", "")).startswith("subagent_") and payload.get("data"):
            number = await self._desk.numbers.run(payload["data"]["run_id"])
            data = {**payload["data"], "run_id": number}
            return replace(event, payload={**payload, "data": data})
        return event

    async def _meet(self, event: Any) -> None:
        """Take from an event how the run's message came; a retry goes on with that of another."""
        if isinstance(event, MessageReceived | SessionForked) and event.message == self._row.id:
            self.meta = event.meta or {}
        elif isinstance(event, RunStarted) and event.run == self._row.id and event.retry_of:
            self.meta = await self._desk.meta(await self._desk.runs.row(event.retry_of))

    async def _beginning(self) -> int:
        """Return the position before what the run's first model call was shown.

        From there on the timeline can count the messages of each call. It is before what came with
        the run's message if it asked no model, or the beginning of the log if it has not begun.
        """
        start = before_asked(self._row)
        if start and not self._brief:
            async for item in self._desk.runs.read(self._row.session, start, EVENTS_READ):
                if isinstance(item.event, ModelCallIntended):
                    return min(start, item.event.first - 1)
                if isinstance(item.event, RunStarted) and item.event.run != self._row.id:
                    break
        return start


def before_asked(row: RunRow) -> int:
    """Return the position before the first event that came with what asked for a run."""
    message = (row.started_seq or 2) - 1
    return (row.first_seq or message) - 1
