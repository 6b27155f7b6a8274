"""Where a stored run's agent came from, so that another process can go on with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from perdure.bootstrap import Agent, is_shared, open_reader, quarantined, sqlite_path
from perdure.cli.access import FOLDER, home_url, kept_key
from perdure.cli.loading import load_policy, load_team
from perdure.core.codec import Record, decode_event
from perdure.core.commands import SendMessage, decode_command
from perdure.core.errors import BrokenChain, InvalidInput, NotFound
from perdure.core.events import MessageReceived, SessionForked
from perdure.core.export import verify_log
from perdure.core.gate import NO_RULES, Gate
from perdure.core.ids import SessionId
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports.session_store import InboxEntry, Loaded, RunQuery

TENANT = "default"
PAGE_ROWS = 500


class Reader(Protocol):
    """What is read of a store without running it."""

    async def load(self, session: SessionId) -> Loaded | None:
        """Return a session."""
        ...

    async def read(self, session: SessionId, after: int, limit: int) -> list[Record]:
        """Return records of a session."""
        ...

    async def list(self, query: RunQuery) -> list[RunRow]:
        """Return rows of runs."""
        ...


@asynccontextmanager
async def reading(store: str) -> AsyncIterator[Any]:
    """Open an existing store for reading; raise `NotFound` if there is none."""
    path = sqlite_path(store)
    if not is_shared(store) and (path is None or not path.exists()):
        has_server = kept_key(Path(FOLDER)) is not None
        hint = f"; what the server of `perdure dev` has is at --url {home_url(Path(FOLDER))}"
        raise NotFound(f"there is no store at {store}{hint if has_server else ''}")
    reader = await open_reader(store)
    try:
        yield reader
    finally:
        await reader.close()


async def whole_log(reader: Reader, session: SessionId) -> list[Record]:
    """Return a session's whole log, verified: what is shown to a person is what was written.

    Raises `Quarantined` for a session that is set aside, and `BrokenChain` for a log that is not
    what it was.
    """
    loaded = await reader.load(session)
    if loaded is not None and loaded.quarantine is not None:
        raise quarantined(session, loaded.quarantine)
    records: list[Record] = []
    while page := await reader.read(session, len(records), PAGE_ROWS):
        records.extend(page)
    try:
        verify_log(session, records)
    except BrokenChain as error:
        raise BrokenChain(error.seq, f"the log of session {session} is broken: {error}") from None
    return records


async def all_rows(reader: Reader, query: RunQuery) -> list[RunRow]:
    """Return every row that matches, newest first."""
    rows: list[RunRow] = []
    while True:
        before = (rows[-1].created_at, rows[-1].id) if rows else None
        page = await reader.list(
            RunQuery(
                tenant=query.tenant,
                agent=query.agent,
                key=query.key,
                status=query.status,
                before=before,
                limit=PAGE_ROWS,
            )
        )
        rows.extend(page)
        if len(page) < PAGE_ROWS:
            return rows


async def row_of(reader: Reader, run_id: str) -> RunRow:
    """Return a run's row; an unambiguous beginning of its id will do. Raises `NotFound`."""
    exact = await reader.list(RunQuery(tenant=TENANT, run=run_id, limit=1))
    if exact:
        return exact[0]
    rows = await all_rows(reader, RunQuery(tenant=TENANT))
    found = [row for row in rows if len(run_id) >= 4 and row.id.startswith(run_id)]
    if len(found) == 1:
        return found[0]
    raise NotFound(
        f"there is no run {run_id!r}; `perdure runs list` shows them"
        if not found
        else f"{run_id!r} is the beginning of {len(found)} runs; give more of the id"
    )


async def unfinished(reader: Reader, run_id: str | None) -> list[RunRow]:
    """Return the runs that have not ended, oldest first, or the one that is named."""
    if run_id is not None:
        return [await row_of(reader, run_id)]
    rows = await all_rows(reader, RunQuery(tenant=TENANT))
    return [row for row in reversed(rows) if row.status not in TERMINAL and row.status != "merged"]


async def agents_of(
    reader: Reader, rows: Iterable[RunRow], override: str | None
) -> dict[str, Agent]:
    """Load the agents of these runs from where they were first run; `override` is one reference."""
    agents: dict[str, Agent] = {}
    if override is not None:
        agent, others, _ = load_team(override)
        agents |= {one.name: one for one in (*others, agent)}
    for row in rows:
        if row.session.agent in agents:
            continue
        meta = await meta_of(reader, row)
        if meta and meta.get("source"):
            agent, others, _ = load_team(meta["source"])
            if meta.get("model"):
                agent = agent.with_model(meta["model"])
            agents = {**{one.name: one for one in others}, **agents, agent.name: agent}
    return agents


async def policy_of(reader: Reader, rows: Iterable[RunRow]) -> Gate:
    """Load the policy that these runs were started under, as its file is now.

    Raises `InvalidInput` if they were started under several.
    """
    named = set[str | None]()
    for row in rows:
        named.add(((await meta_of(reader, row)) or {}).get("policy"))
    if len(named) > 1:
        files = ", ".join(sorted(str(one) for one in named))
        raise InvalidInput(f"these runs are under several policies: name one run ({files})")
    path = next(iter(named), None)
    return NO_RULES if path is None else load_policy(path)[0]


BRINGING = (MessageReceived, SessionForked)


async def meta_of(reader: Reader, row: RunRow) -> dict[str, Any] | None:
    """Return the latest message metadata of a run's session that names a source."""
    found: dict[str, Any] | None = None
    after = 0
    while records := await reader.read(row.session, after, PAGE_ROWS):
        for record in records:
            after = record.seq
            event = decode_event(record.body)
            if isinstance(event, BRINGING) and event.meta and "source" in event.meta:
                found = event.meta
    if found is None:
        loaded = await reader.load(row.session)
        for entry in loaded.inbox if loaded else ():
            found = _meta_in(entry) or found
    return found


def _meta_in(entry: InboxEntry) -> dict[str, Any] | None:
    command = decode_command(entry.command, entry.accepted_at)
    return command.meta if isinstance(command, SendMessage) else None
