"""A tenant's desk: what its requests are served from. Nothing of another tenant is in reach."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from perdure.api import shapes
from perdure.api.errors import Rejected
from perdure.api.projection import RunFacts, SessionFacts, run_object
from perdure.api.shapes import timestamp
from perdure.api.timeline import ModelUse
from perdure.api.transcript import (
    BYTES_PER_TOKEN,
    Outline,
    Transcript,
    context_object,
    input_of,
)
from perdure.core.agent import AgentSpec
from perdure.core.children import OWN_KEY, TREE_KEY
from perdure.core.durability import Durability
from perdure.core.errors import NotFound, Refused
from perdure.core.events import ContextCompacted, MessageReceived, SessionForked
from perdure.core.history import said_by
from perdure.core.ids import SessionId
from perdure.core.messages import Usage, plus
from perdure.core.runs import TERMINAL, RowStatus, RunRow
from perdure.core.state import State, heard
from perdure.ports import entries
from perdure.ports.catalog import NameTaken, TenantCatalog
from perdure.ports.clock import Clock
from perdure.runtime.node import Node
from perdure.server.catalogued import Catalogued
from perdure.server.changes import Changes
from perdure.server.keys import Keyring, Principal
from perdure.server.leaving import Leaving
from perdure.server.limits import RunLimit
from perdure.server.numbers import Numbers
from perdure.server.pool import Pool
from perdure.server.repeats import Repeats
from perdure.server.sealing import Seal
from perdure.server.servers import Servers
from perdure.server.telling import Telling, before_asked
from perdure.server.webhooks import Webhooks
from perdure.wire import table as wire

GARD_DESTROYED = "its gard was destroyed"
GOING_ON: tuple[RowStatus, ...] = ("queued", "running")
UNENDED: tuple[RowStatus, ...] = ("queued", "running", "waiting")
_SESSION_KEY = re.compile(r"((?:[^~]|~~)*)(~\d+)?", re.DOTALL)
TRANSCRIPTS_MAX = 100
TELLINGS_MAX = 1_000
SHOWN_MAX = 2_000
SHOWN_BYTES_MAX = 16 * 1024
"""So many runs that have ended are kept as they are shown, if they are no larger than that."""

ROWS_READ = 100
"""So many rows of runs are read at a time."""


MERGES_MAX = 8
"""How many times a run that joined another one is followed to the one it joined."""


class Desk:
    """One tenant's share of a server."""

    def __init__(
        self,
        tenant: str,
        node: Node,
        catalog: TenantCatalog,
        agents: Catalogued,
        pool: Pool,
        keys: Keyring,
        clock: Clock,
        seal: Seal,
        fresh: Callable[[int], bytes],
        leaving: Leaving,
        room: RunLimit,
        webhooks: Webhooks,
        changes: Changes,
        servers: Servers,
        durability: Durability,
    ) -> None:
        self.tenant = tenant
        self.runs = node.of(tenant)
        self.catalog = catalog
        self.agents = agents
        self.pool = pool
        self.clock = clock
        self.numbers = Numbers(catalog)
        self.keys = keys
        self.seal = seal
        self.fresh = fresh
        self.leaving = leaving
        self.room = room
        self.webhooks = webhooks
        self.changes = changes
        self.servers = servers
        self.durability = durability
        """What it is worth that something was accepted."""
        self.repeats = Repeats(catalog, seal, clock)
        self._transcripts: OrderedDict[SessionId, tuple[int, Transcript]] = OrderedDict()
        self._shown: OrderedDict[str, tuple[RunRow, shapes.Run]] = OrderedDict()
        self._tellings: OrderedDict[tuple[str, bool], Telling] = OrderedDict()
        self.specs: dict[str, AgentSpec] = {}
        """Definitions that logs name, by digest."""

    # -------------------------------------------------------------------------------- finding

    async def agent(self, id_: int, *, archived: bool = True) -> entries.Agent:
        """Return an agent's entry, and have it known if it is newer. Raises `Rejected` (404)."""
        entry = await self.catalog.get(entries.Agent, id_)
        if entry is None or (entry.archived_at is not None and not archived):
            raise Rejected(404, "not found")
        await self.agents.meet(self.tenant, entry)
        return entry

    async def row(self, number: int) -> RunRow:
        """Return the row of the run with this number. Raises `Rejected` (404)."""
        run = await self.numbers.run_named(number)
        if run is None:
            raise Rejected(404, "not found")
        try:
            return await self.runs.row(run)
        except NotFound:
            raise Rejected(404, "not found") from None

    async def current(self, session: SessionId) -> RunRow | None:
        """Return the first run of a session that has not ended; None if all have."""
        rows = await self.runs.rows(agent=session.agent, key=session.key)
        open_rows = [row for row in rows if row.status in ("queued", "running", "waiting")]
        return open_rows[-1] if open_rows else None

    async def active(self, agent: str, key: str | None = None) -> list[RunRow]:
        """Return the runs of an agent, or of one of its sessions, that have not ended."""
        return await self.rows(agent=agent, key=key, statuses=(*UNENDED, "running"))

    async def end(self, rows: Iterable[RunRow], reason: str) -> None:
        """End runs; one that has ended meanwhile is left alone."""
        for row in rows:
            try:
                await self.runs.cancel(row.id, reason)
            except Refused as refused:
                if refused.code != "not_running":
                    raise

    async def rows(
        self,
        limit: int | None = None,
        *,
        agent: str | None = None,
        key: str | None = None,
        statuses: Sequence[RowStatus | None] = (None,),
        before: tuple[int, str] | None = None,
        wanted: Callable[[RunRow], bool] = lambda row: True,
    ) -> list[RunRow]:
        """Return the newest rows that are wanted, as many as there are or up to `limit`.

        One whose status changes meanwhile comes once, and is missed only where it went back to a
        status that was looked at before.
        """
        found: list[RunRow] = []
        for status in statuses:
            at, left = before, limit
            while left is None or left > 0:
                rows = await self.runs.rows(
                    agent=agent, key=key, status=status, before=at, limit=ROWS_READ
                )
                kept = [row for row in rows if wanted(row)][:left]
                found += kept
                left = None if left is None else left - len(kept)
                if len(rows) < ROWS_READ:
                    break
                at = (rows[-1].created_at, rows[-1].id)
        once = list({row.id: row for row in found}.values())
        once.sort(key=lambda row: (row.created_at, row.id), reverse=True)
        return once[:limit]

    async def gard(self, id_: Any) -> int | None:
        """Return the id of a gard that a client names; None if it names none.

        Raises `Rejected` (404) if there is none that could run something.
        """
        if id_ is None:
            return None
        number = int(id_) if str(id_).isascii() and str(id_).isdigit() else 0
        found = await self.catalog.get(entries.Gard, number)
        if found is None or found.status == "destroyed":
            raise Rejected(404, "gard not found")
        return number

    async def session(self, agent: int, key: str) -> SessionId:
        """Return the session that a conversation's key stands for now."""
        found = await self.catalog.find(entries.ConversationKey, f"{agent}/{key}")
        generation = 0 if found is None else found.generation
        return SessionId(self.tenant, str(agent), _inside(key, generation))

    async def begin_anew(self, agent: int, key: str) -> None:
        """Have a conversation's key stand for a session that is not there yet."""
        name = f"{agent}/{key}"
        with suppress(NameTaken):
            await self.catalog.create(entries.ConversationKey(name=name))
        found = await self.catalog.find(entries.ConversationKey, name)
        assert found is not None
        await self.catalog.change(
            entries.ConversationKey,
            found.id,
            lambda one: replace(one, generation=found.generation + 1),
        )

    async def note(
        self,
        session: SessionId,
        change: Callable[[entries.SessionNote], entries.SessionNote] | None = None,
    ) -> entries.SessionNote:
        """Return what is kept about a session, changed if so asked."""
        name = f"{session.agent}/{session.key}"
        found = await self.catalog.find(entries.SessionNote, name)
        if found is None:
            found = entries.SessionNote(name=name)
            if change is None:
                return found
            with suppress(NameTaken):
                await self.catalog.create(found)
            return await self.note(session, change)
        if change is None:
            return found
        return await self.catalog.change(entries.SessionNote, found.id, change) or found

    async def latest_runs(
        self,
        limit: int | None,
        *,
        agent: str | None = None,
        before: tuple[int, str] | None = None,
        archived: bool = False,
        subagents: bool = True,
    ) -> tuple[list[RunRow], bool]:
        """Return the latest run of each of up to `limit` sessions, and whether there are more.

        None means all of them.

        Sessions that were put away, or whose agent was, come only if `archived` asks for them, and
        those that agents began only with `subagents`.
        """
        found: list[RunRow] = []
        seen: set[SessionId] = set()
        while rows := await self.runs.rows(agent=agent, before=before):
            for row in rows:
                if row.session in seen:
                    continue
                seen.add(row.session)
                if not subagents and row.session.key.startswith((OWN_KEY, TREE_KEY)):
                    continue
                if await self._is_put_away(row.session, agent) != archived:
                    continue
                newest = await self.runs.rows(agent=row.session.agent, key=row.session.key, limit=1)
                if newest[0].id != row.id:
                    continue
                if len(found) == limit:
                    return found, True
                found.append(row)
            before = (rows[-1].created_at, rows[-1].id)
        return found, False

    async def _is_put_away(self, session: SessionId, agent: str | None) -> bool:
        entry = self.agents.entry(self.tenant, session.agent)
        if agent is None and (entry is None or entry.archived_at is not None):
            return True
        return (await self.note(session)).put_away_at is not None

    async def runs_in(self, gard: int) -> list[RunRow]:
        """Return the runs in a gard that have not ended."""
        rows = await self.rows(statuses=(*UNENDED, "running"))
        return [row for row in rows if (await self.meta(row)).get("gard") == gard]

    async def offer_port(self, gard: int, port: wire.Port) -> entries.Port:
        """Keep a port that a gard's worker has opened. Raises `Rejected` with what is wrong."""
        wrong: dict[str, list[str]] = {}
        number, url = port.internal_port, port.url
        if not isinstance(number, int) or not 0 < number < 65536:
            wrong["internal_port"] = ["must be between 1 and 65535"]
        protocol: Any = port.protocol or "http"
        if protocol not in ("http", "https", "tcp"):
            wrong["protocol"] = ["is invalid"]
        if url is not None and not str(url).startswith(("http://", "https://", "tcp://")):
            wrong["url"] = ["must begin with http://, https:// or tcp://"]
        if wrong:
            raise Rejected(422, wrong)
        name = str(port.name) if port.name else None
        entry = entries.Port(
            gard_id=gard, internal_port=number, url=url, name=name, protocol=protocol
        )
        return await self.catalog.create(entry)

    @contextmanager
    def following(self, session: SessionId) -> Iterator[asyncio.Event]:
        """Give an event that is set at news of a session; whoever has looked clears it."""
        came = asyncio.Event()

        def tell(run: str | None, piece: str) -> None:
            if run is None:
                came.set()

        leave = self.runs.follow(session, tell)
        try:
            with self.leaving.waking(came):
                yield came
        finally:
            leave()

    # -------------------------------------------------------------------------------- showing

    async def told(self, row: RunRow, *, brief: bool = False) -> Telling:
        """Return what the log tells of a run so far; what was read before is not read again."""
        key = row.id, brief
        telling = self._tellings.pop(key, None) or Telling(self, row, brief=brief)
        async for _ in telling.read():
            pass
        self._tellings[key] = telling
        while len(self._tellings) > TELLINGS_MAX:
            self._tellings.popitem(last=False)
        return telling

    async def meta(self, row: RunRow) -> dict[str, Any]:
        """Return what came with a run's message; a retry goes on with that of another run."""
        while True:
            found, retry_of = await self._came_with(row)
            if retry_of is None:
                return found
            row = await self.runs.row(retry_of)

    async def _came_with(self, row: RunRow) -> tuple[dict[str, Any], str | None]:
        """Return what came with a run's message, and the run that it goes on with, if it does."""
        if row.started_seq is None:
            asked = await self.runs.message_of(row)
            if asked is not None:
                return asked.meta or {}, asked.retry_of
            row = await self.runs.row(row.id)
        if row.started_seq is None:
            return {}, None
        found: dict[str, Any] = {}
        async for item in self.runs.read(row.session, before_asked(row)):
            if isinstance(item.event, MessageReceived | SessionForked):
                found = item.event.meta or {}
            if item.seq == row.started_seq:
                return found, getattr(item.event, "retry_of", None)
        return found, None

    async def used(self, row: RunRow) -> Mapping[str, ModelUse]:
        """Return what models were used for in a run: its row knows, unless the run goes on."""
        if row.started_seq is None:
            return {}
        if row.use is None or row.status == "running":
            return (await self.told(row, brief=True)).timeline.use
        found: dict[str, ModelUse] = {}
        for one in row.use:
            spec = None if one.model is not None else await self.spec(one.agent)
            name = one.model or (spec.model if spec is not None else "")
            calls, usage = found.get(name, ModelUse(0, Usage()))
            found[name] = ModelUse(calls + one.calls, plus(usage, one.usage))
        return found

    async def spec(self, digest: str | None) -> AgentSpec | None:
        """Return the definition with this digest, and have it at hand; None if it is not known."""
        if digest is None:
            return None
        if digest not in self.specs:
            body = await self.runs.blob(digest)
            if body is not None:
                self.specs[digest] = msgspec.json.decode(body, type=AgentSpec)
        return self.specs.get(digest)

    def accepted(self, run: int) -> shapes.Accepted:
        """Return what says that a run, or something about it, was accepted."""
        return shapes.Accepted(run_id=run, durability=self.durability)

    async def show(self, row: RunRow) -> shapes.Run:
        """Return a run as the API shows it."""
        return (await self.show_all([row]))[0]

    async def show_all(self, rows: Sequence[RunRow]) -> list[shapes.Run]:
        """Return runs as the API shows them."""
        numbers = await self.numbers.runs([row.id for row in rows])
        sessions = await self.numbers.sessions([row.session for row in rows])
        return [
            await self._run_object(row, number, session)
            for row, number, session in zip(rows, numbers, sessions, strict=True)
        ]

    async def outline(self, latest: RunRow) -> Outline:
        """Return what was said in a session in a few words; `latest` is its latest run.

        Rows know how much it was. Of the log, only what came after the last of them is read.
        """
        session = latest.session
        rows = [latest]
        if latest.seq is None:
            rows = await self.rows(
                1, agent=session.agent, key=session.key, wanted=lambda row: row.seq is not None
            )
        if not rows or rows[0].seq is None:
            said = await self.transcript(session)
            return Outline(
                said.first_message, said.summary, said.message_count, said.token_estimate
            )
        row = rows[0]
        counted = State(messages=row.messages, content_bytes=row.content_bytes)
        summary = None
        if row.summary is not None:
            folded = await self.runs.event(session, row.summary)
            summary = None if folded is None else getattr(folded.event, "content", None)
        if row.status not in TERMINAL:
            async for item in self.runs.read(session, rows[0].seq):
                counted = heard(counted, said_by(item.event))
                if isinstance(item.event, ContextCompacted):
                    summary = item.event.content
        tokens = counted.content_bytes // BYTES_PER_TOKEN
        return Outline(await self._first_message(session), summary, counted.messages, tokens)

    async def _first_message(self, session: SessionId) -> Any:
        seq = 1
        while (item := await self.runs.event(session, seq)) is not None:
            if contents := said_by(item.event):
                return contents[0]
            seq += 1
        return None

    async def transcript(self, session: SessionId) -> Transcript:
        """Return what was said in a session; what was read before is not read again."""
        at, transcript = self._transcripts.pop(session, (0, Transcript()))
        async for item in self.runs.read(session, at):
            at = item.seq
            transcript.feed(item.seq, item.event)
        self._transcripts[session] = (at, transcript)
        while len(self._transcripts) > TRANSCRIPTS_MAX:
            self._transcripts.popitem(last=False)
        return transcript

    async def session_facts(
        self, session: SessionId, latest: RunRow, first: RunRow | None = None
    ) -> SessionFacts:
        """Return what is known of a session besides its log."""
        note = await self.note(session)
        entry = await self.agent(int(session.agent))
        times = [latest.created_at, latest.started_at or 0, latest.ended_at or 0]
        return SessionFacts(
            id=(await self.numbers.sessions([session]))[0],
            agent_id=entry.id,
            agent_name=entry.name,
            key=_outside(session.key),
            inserted_at=(first or latest).created_at,
            updated_at=max(times),
            title=note.title,
            archived_at=note.put_away_at,
        )

    async def _run_object(self, row: RunRow, number: int, session: int) -> shapes.Run:
        known = self._shown.get(row.id)
        if known is not None and known[0] == row:
            self._shown.move_to_end(row.id)
            return known[1]
        asked = await self.runs.message_of(row) if row.status == "queued" else None
        if row.status == "queued" and asked is None:
            row = await self.runs.row(row.id)
        joined = await self.joined(row)
        ended = joined.status in TERMINAL
        telling = None if asked is not None else await self.told(joined, brief=ended)
        meta = await self.meta(row) if telling is None else telling.meta
        timeline = None if telling is None else telling.timeline
        parent = None if timeline is None else timeline.parent
        facts = RunFacts(
            id=number,
            agent_id=int(row.session.agent),
            conversation_id=session,
            parent_run_id=None if parent is None else await self.numbers.run(parent.run),
            depth=0 if parent is None else parent.depth,
            gard_id=meta.get("gard"),
            trigger_type=meta.get("trigger", "message"),
            content=None if asked is None else input_of(asked),
            context=None if asked is None else context_object(asked),
            fork=meta.get("fork"),
        )
        children = [] if timeline is None else await self._costs(timeline.children)
        shown = run_object(
            row,
            facts,
            timeline=timeline,
            joined=joined,
            children=children,
            prices=self.runs.prices,
        )
        if ended:
            self._keep(row, shown)
            return shown
        shown = replace(shown, waits=await self._numbered(shown.waits, joined))
        waits = [
            shapes.Wait(
                what="worker",
                call=one.call,
                needs=one.needs,
                due_at=UNSET if one.until_ms is None else timestamp(one.until_ms),
            )
            for one in self.pool.queues.waiting_for(joined.session)
        ]
        if joined.status in GOING_ON and (why := await self.runs.set_aside(joined.session)):
            waits.append(shapes.Wait(what="release", call="", needs=why))
        return replace(shown, waits=(*shown.waits, *waits)) if waits else shown

    async def _numbered(self, waits: Sequence[shapes.Wait], row: RunRow) -> tuple[shapes.Wait, ...]:
        """Return what a run waits for, with the numbers of the runs among that."""
        runs = {one["call"]: one["run"] for one in row.waiting_for if "run" in one}
        return tuple(
            [
                replace(one, run_id=await self.numbers.run(runs[one.call]))
                if one.call in runs
                else one
                for one in waits
            ]
        )

    async def _costs(self, children: Sequence[str]) -> list[shapes.Cost]:
        """Return what runs cost with all that they launched; one without a row cost nothing."""
        found: list[shapes.Cost] = []
        for child in children:
            with suppress(NotFound):
                row = await self.runs.row(child)
                number = await self.numbers.run(child)
                [session] = await self.numbers.sessions([row.session])
                found.append((await self._run_object(row, number, session)).total_cost)
        return found

    def _keep(self, row: RunRow, shown: shapes.Run) -> None:
        """Keep what a run looks like that has ended: nothing of it changes any more."""
        if len(msgspec.json.encode(shown)) <= SHOWN_BYTES_MAX:
            self._shown[row.id] = (row, shown)
        while len(self._shown) > SHOWN_MAX:
            self._shown.popitem(last=False)

    async def joined(self, row: RunRow) -> RunRow:
        """Return the run that a merged one joined, or the run itself."""
        for _ in range(MERGES_MAX):
            if row.status != "merged" or row.merged_into is None:
                break
            row = await self.runs.row(row.merged_into)
        return row


def _inside(key: str, generation: int) -> str:
    """Return the session's key of a conversation's key that began anew so often."""
    return key.replace("~", "~~") + (f"~{generation}" if generation else "")


def _outside(key: str) -> str:
    """Return the conversation's key of a session's key: the generation is nobody's business."""
    found = _SESSION_KEY.fullmatch(key)
    return (key if found is None else found[1]).replace("~~", "~")


class Request(msgspec.Struct, frozen=True):
    """A request that was let in: its path's ids and texts, its query and its body, all typed."""

    path: Mapping[str, str]
    query: Any
    body: Any
    key: str | None
    """The client's idempotency key."""
    by: Principal | None = None
    """Whose key it came with; None where none is needed."""
    unknown: tuple[str, ...] = ()
    """Names of fields and parameters that were left out, because nothing here knows them."""


class Answer(msgspec.Struct, frozen=True):
    """What a handler answers."""

    body: Any = None
    status: int = 200
