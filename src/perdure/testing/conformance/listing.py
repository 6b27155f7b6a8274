"""List: rows of runs, newest first, in pages, and never those of another tenant."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import RunQuery, SessionStore
from perdure.testing.conformance.claimant import SESSION, claim, created, dump, entry, submit

FULL_ROW = RunRow(
    id="run",
    session=SESSION,
    status="failed",
    created_at=1,
    started_seq=2,
    started_at=3,
    ended_at=4,
    steps=5,
    input_tokens=6,
    output_tokens=7,
    answer=8,
    merged_into="other",
    error_class="tool",
    code="E1",
    message="it broke: \u00e9\U0001f600",
    waiting_for=({"call": "1.1.t0", "what": "answer", "question": None},),
)

# created_at, id, agent, key, status
LISTED = [
    (10, "r1", "support", "a", "completed"),
    (20, "r2", "support", "b", "running"),
    (20, "r3", "sales", "a", "running"),
    (5, "r4", "support", "a", "failed"),
    (30, "r0", "support", "a", "running"),
]


async def filled(store: SessionStore, tenant: str = "tenant") -> None:
    """Accept a command with each of the rows."""
    for created_at, run, agent, key, status in LISTED:
        session = SessionId(tenant, agent, key)
        row = msgspec.convert(
            {"id": run, "session": session, "status": status, "created_at": created_at}, RunRow
        )
        await store.accept(entry(run, session=session), row)


class Listing:
    """What `list` promises, and what keeps tenants apart."""

    async def test_a_row_comes_back_with_every_field(self, store: SessionStore) -> None:
        await store.accept(entry("run"), FULL_ROW)
        assert await store.list(RunQuery(tenant="tenant")) == [FULL_ROW]

    async def test_a_step_writes_its_rows_over_those_before(self, store: SessionStore) -> None:
        queued = RunRow(id="run", session=SESSION, status="queued", created_at=1)
        await store.accept(entry("run"), queued)
        owner = await claim(store)
        running = msgspec.structs.replace(queued, status="running", steps=3)
        assert await submit(store, owner.step(b"event", rows=(running,), postponed=1)) == [None]
        assert await store.list(RunQuery(tenant="tenant")) == [running]
        assert await store.list(RunQuery(tenant="tenant", status="queued")) == []

    async def test_a_row_keeps_the_time_of_its_first_write(self, store: SessionStore) -> None:
        first = RunRow(id="run", session=SESSION, status="queued", created_at=7)
        later = msgspec.structs.replace(first, status="running", created_at=9)
        await store.accept(entry("run"), first)
        owner = await claim(store)
        assert await submit(store, owner.step(b"event", rows=(later,), postponed=1)) == [None]
        kept = msgspec.structs.replace(later, created_at=7)
        assert await store.list(RunQuery(tenant="tenant", before=(8, ""))) == [kept]

    async def test_a_merged_run_names_the_one_it_joined(self, store: SessionStore) -> None:
        running = RunRow(id="r1", session=SESSION, status="running", created_at=1)
        queued = RunRow(id="r2", session=SESSION, status="queued", created_at=2)
        await store.accept(entry("r1"), running)
        await store.accept(entry("r2"), queued)
        owner = await claim(store)
        merged = msgspec.structs.replace(queued, status="merged", merged_into="r1")
        step = owner.step(b"event", consumed=("r1", "r2"), rows=(running, merged))
        assert await submit(store, step) == [None]
        assert await store.list(RunQuery(tenant="tenant")) == [merged, running]
        assert await store.list(RunQuery(tenant="tenant", run="r2")) == [merged]

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({}, ["r0", "r3", "r2", "r1", "r4"]),
            ({"limit": 2}, ["r0", "r3"]),
            ({"limit": 0}, []),
            ({"run": "r2"}, ["r2"]),
            ({"run": "r9"}, []),
            ({"run": "r2", "status": "failed"}, []),
            ({"agent": "support"}, ["r0", "r2", "r1", "r4"]),
            ({"agent": "support", "key": "a"}, ["r0", "r1", "r4"]),
            ({"key": "a"}, ["r0", "r3", "r1", "r4"]),
            ({"status": "running"}, ["r0", "r3", "r2"]),
            ({"status": "running", "key": "a", "limit": 1}, ["r0"]),
            ({"before": (20, "r3")}, ["r2", "r1", "r4"]),
            ({"before": (20, "r2"), "agent": "support"}, ["r1", "r4"]),
            ({"before": (0, "")}, []),
            ({"tenant": "nobody"}, []),
        ],
    )
    async def test_runs_are_found_newest_first(
        self, store: SessionStore, query: dict[str, Any], found: list[str]
    ) -> None:
        await filled(store)
        rows = await store.list(RunQuery(**{"tenant": "tenant", **query}))
        assert [row.id for row in rows] == found

    async def test_pages_follow_each_other_without_a_gap(self, store: SessionStore) -> None:
        await filled(store)
        pages, before = [], None
        for _ in range(len(LISTED)):
            page = await store.list(RunQuery(tenant="tenant", before=before, limit=2))
            if not page:
                break
            pages.append([row.id for row in page])
            before = (page[-1].created_at, page[-1].id)
        assert list(itertools.chain(*pages)) == ["r0", "r3", "r2", "r1", "r4"]

    async def test_tenants_never_see_each_other(self, store: SessionStore) -> None:
        await filled(store, "one")
        before = await dump(store, SessionId("one", "support", "a"), tenants=("one",))
        await filled(store, "two")
        theirs = SessionId("two", "support", "a")
        owner = await claim(store, theirs)
        assert await submit(store, owner.step(b"event", consumed=("r1",))) == [None]
        await store.release(theirs, owner.token, quarantine="no")
        after = await dump(store, SessionId("one", "support", "a"), tenants=("one",))
        assert {**after, "due": None} == {**before, "due": None}
        assert all(row.session.tenant == "two" for row in await store.list(RunQuery(tenant="two")))
        assert await store.list(RunQuery(tenant="one", run="r1")) != await store.list(
            RunQuery(tenant="two", run="r1")
        )

    async def test_names_with_separators_in_them_are_not_confused(
        self, store: SessionStore
    ) -> None:
        names = [
            SessionId("a", "b/c", "d"),
            SessionId("a/b", "c", "d"),
            SessionId("a", "b", "c/d"),
            SessionId("", "", ""),
        ]
        for session in names:
            owner = await created(store, session)
            assert await submit(store, owner.step(str(session.agent).encode())) == [None]
        for session in names:
            log = await store.read(session, 0, 10)
            assert [record.body for record in log] == [session.agent.encode()]
