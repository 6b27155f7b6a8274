"""Commit: all of a step or nothing, guarded by token and version, in the order of submission."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from perdure.core.codec import Record, verify_chain
from perdure.core.errors import StoreError
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    CommitDone,
    RunQuery,
    SessionStore,
    Settled,
    StepCommit,
    Token,
)
from perdure.testing.conformance.claimant import (
    SESSION,
    Claimant,
    claim,
    created,
    dump,
    entry,
    outcomes,
    submit,
)

OTHER = SESSION._replace(key="other")
ROW = RunRow(id="run", session=SESSION, status="running", created_at=1)


def changed(**fields: Any) -> Callable[[StepCommit], StepCommit]:
    """Return a function that puts something else into a step."""
    return lambda step: msgspec.structs.replace(step, **fields)


# What differs from the right commit, and the error that names it. The session is at version 1, its
# claim is (1, "n"), and "open" is the one command in its inbox.
REFUSED = [
    ("another nonce", changed(token=Token(1, "x")), "Fenced"),
    ("an older epoch", changed(token=Token(0, "n")), "Fenced"),
    ("a later epoch", changed(token=Token(2, "n")), "Fenced"),
    ("a session that does not exist", changed(session=OTHER), "Fenced"),
    ("another token and another version", changed(token=Token(2, "n"), expected=7), "Fenced"),
    ("an older version", changed(expected=0, records=()), "Conflict"),
    ("a later version", changed(expected=2, records=()), "Conflict"),
    ("an older version, with its record", changed(expected=0, records=(Record(1, b"", b"h"),)),
     "Conflict"),
    ("a gap before its records", changed(records=(Record(3, b"x", b"h"),)), "Conflict"),
    ("a record that is there already", changed(records=(Record(1, b"x", b"h"),)), "Conflict"),
    ("a gap between its records",
     changed(records=(Record(2, b"x", b"h"), Record(4, b"x", b"h"))), "Conflict"),
    ("a command that was never accepted", changed(consumed=("open", "unknown")), "Conflict"),
    ("a command that was consumed before", changed(consumed=("first",)), "Conflict"),
    ("a command consumed twice", changed(consumed=("open", "open")), "Conflict"),
]  # fmt: skip


async def prepared(store: SessionStore) -> Claimant:
    """Make a session at version 1 with one open command."""
    owner = await created(store)
    await store.accept(entry("open"))
    assert await submit(store, owner.step(b"one", postponed=1)) == [None]
    return owner


class Committing:
    """What `commit` promises."""

    async def test_a_step_is_visible_as_a_whole(self, store: SessionStore) -> None:
        owner = await prepared(store)
        step = owner.step(
            b"two",
            b"three",
            consumed=("open",),
            rows=(ROW,),
            snapshot=b"state at 3",
            blobs=(("address", b"content"),),
        )
        assert await submit(store, step) == [None]
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert (loaded.version, loaded.head) == (3, owner.head)
        assert (loaded.snapshot, loaded.tail, loaded.inbox) == (b"state at 3", (), ())
        log = await store.read(SESSION, 0, 10)
        assert [(record.seq, record.body) for record in log] == [
            (1, b"one"),
            (2, b"two"),
            (3, b"three"),
        ]
        assert verify_chain(owner.loaded.head, 0, log) == owner.head
        assert await store.list(RunQuery(tenant="tenant")) == [ROW]
        assert await store.blob("address") == b"content"

    @pytest.mark.parametrize(
        ("spoil", "error"),
        [(spoil, error) for _, spoil, error in REFUSED],
        ids=[what for what, _, _ in REFUSED],
    )
    async def test_a_refused_step_writes_nothing_and_says_why(
        self, store: SessionStore, spoil: Callable[[StepCommit], StepCommit], error: str
    ) -> None:
        owner = await prepared(store)
        before = await dump(store, SESSION, OTHER)
        right = owner.step(
            b"two",
            consumed=("open",),
            wake_at=1,
            rows=(ROW,),
            snapshot=b"state",
            blobs=(("address", b"content"),),
        )
        assert await outcomes(store, spoil(right)) == [error]
        assert await dump(store, SESSION, OTHER) == before
        assert await store.blob("address") is None
        assert await outcomes(store, right) == ["written"]

    async def test_a_step_without_records_leaves_the_log_as_it_is(
        self, store: SessionStore
    ) -> None:
        owner = await prepared(store)
        assert await submit(store, owner.step(consumed=("open",)), owner.step()) == [None, None]
        loaded = await store.load(SESSION)
        assert loaded is not None
        assert (loaded.version, loaded.head, loaded.inbox) == (1, owner.head, ())

    async def test_steps_of_one_session_are_applied_in_the_order_of_submission(
        self, store: SessionStore
    ) -> None:
        owner = await created(store)
        bodies = [b"%d" % n for n in range(200)]
        assert await submit(store, *(owner.step(body) for body in bodies)) == [None] * 200
        log = await store.read(SESSION, 0, 1_000)
        assert [record.body for record in log] == bodies
        assert verify_chain(owner.loaded.head, 0, log) == owner.head

    async def test_callbacks_come_in_the_order_of_submission(self, store: SessionStore) -> None:
        owner = await created(store)
        told: list[tuple[int, StoreError | None]] = []

        def teller(n: int) -> CommitDone:
            return lambda error: told.append((n, error))

        for n in range(5):
            store.commit(owner.step(b"event"), teller(n))
        assert told == []
        assert await submit(store, owner.step(b"last")) == [None]
        assert told == [(n, None) for n in range(5)]

    async def test_a_callback_may_submit_the_next_step(self, store: SessionStore) -> None:
        owner = await created(store)
        loop = asyncio.get_running_loop()
        first: asyncio.Future[StoreError | None] = loop.create_future()
        second: asyncio.Future[StoreError | None] = loop.create_future()

        def go_on(error: StoreError | None) -> None:
            first.set_result(error)
            store.commit(owner.step(b"two"), second.set_result)

        store.commit(owner.step(b"one"), go_on)
        assert (await first, await second) == (None, None)

    async def test_what_was_decided_on_a_refused_step_is_refused_with_it(
        self, store: SessionStore
    ) -> None:
        owner = await prepared(store)
        wrong = msgspec.structs.replace(owner.step(b"never"), expected=0)
        right_by_number = msgspec.structs.replace(
            owner.step(b"based on never"), expected=1, records=(Record(2, b"x", b"h"),)
        )
        before = await dump(store, SESSION)
        assert await outcomes(store, wrong, right_by_number, right_by_number) == ["Conflict"] * 3
        assert await dump(store, SESSION) == before
        assert await outcomes(store, right_by_number) == ["written"]

    async def test_a_refused_step_does_not_touch_those_of_others(self, store: SessionStore) -> None:
        zombie = await created(store)
        owner = await claim(store, nonce="new")
        other = await created(store, OTHER)
        steps = [zombie.step(b"z"), owner.step(b"o"), other.step(b"x"), zombie.step(b"z")]
        assert await outcomes(store, *steps) == ["Fenced", "written", "written", "Fenced"]
        log = await store.read(SESSION, 0, 10)
        assert [record.body for record in log] == [b"o"]

    async def test_what_became_of_a_command_is_known_once_it_is_consumed(
        self, store: SessionStore
    ) -> None:
        owner = await prepared(store)
        await store.accept(entry("refused"))
        assert await store.settled(SESSION, "open") is None
        step = owner.step(b"x", consumed=("open", "refused"), refusals=(("refused", b"why"),))
        assert await submit(store, step) == [None]
        assert await store.settled(SESSION, "open") == Settled()
        assert await store.settled(SESSION, "refused") == Settled(b"why")
        assert await store.settled(SESSION, "never accepted") is None
        assert await store.settled(OTHER, "open") is None

    async def test_one_command_is_consumed_by_one_step(self, store: SessionStore) -> None:
        owner = await prepared(store)
        steps = [owner.step(b"a", consumed=("open",)), owner.step(b"b", consumed=("open",))]
        assert await outcomes(store, *steps) == ["written", "Conflict"]
