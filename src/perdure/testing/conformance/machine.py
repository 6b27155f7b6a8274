"""Any sequence of operations: a store answers as the oracle does, and holds what the oracle holds.

    class MyStoreMachine(StoreMachine):
        open_store = staticmethod(my_store)     # as for the suite in `stores`

    walk(MyStoreMachine)

After every operation the whole store is read and compared: an operation that wrote more than its
answer admits is found at once.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeVar

import msgspec
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from perdure.core.codec import Record, link
from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    InboxEntry,
    NotClaimed,
    RunQuery,
    SessionStore,
    StepCommit,
    Token,
)
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import outcomes
from perdure.testing.conformance.opening import OpenStore
from perdure.testing.conformance.oracle import Oracle

T = TypeVar("T")

TENANTS = ("t1", "t2")
SESSIONS = (SessionId("t1", "a", "k"), SessionId("t1", "b", "k"), SessionId("t2", "a", "k"))
OWNERS = ("n1", "n2")
ADDRESSES = ("b1", "b2")
LEASE_MS = 100
MANY = 10**6
EVERYTHING = frozenset({
    "accept: accepted", "accept: duplicate", "accept: KeyReused", "accept: LimitExceeded",
    "claim: claimed", "claim: strike", "claim: absent", "claim: held", "claim: quarantined",
    "claim: newer", "claim: suspect",
    "commit: written", "commit: Fenced", "commit: Conflict", "commit: after a refused one",
    "renew: in time", "renew: too late",
    "release: released", "release: Fenced", "release: NotFound", "release: quarantine",
    "due: somebody", "due: nobody yet", "unread: something", "settled: refused", "settled: done",
    "read: a page", "list: a page",
})  # fmt: skip

sessions = st.sampled_from(SESSIONS[:1] * 3 + SESSIONS)
owners = st.sampled_from(OWNERS)
names = st.sampled_from(["c1", "c2", "c3", "c4", "c5"])
statuses = st.sampled_from(["queued", "running", "failed", "merged"])
generations = st.sampled_from([0] * 6 + [1])
readers = st.sampled_from([None, None, 1, 0])
moments = st.sampled_from([None, 0, 10**12, 2 * 10**12])
Ahead = tuple[int, bytes, list[str]]
"""The version, the head and the waiting commands that an owner decides its next step on."""

contents = st.dictionaries(st.sampled_from(ADDRESSES), st.just(b"content"))
bodies = st.lists(st.sampled_from([b"{}", b"\0", b"x" * 70_000]), max_size=3)


class StoreMachine(RuleBasedStateMachine):
    """Operations on a few sessions of two tenants, by two nodes.

    `reached` counts the outcomes of all runs of a class. A driver whose inboxes are made small for
    the test says so in `inbox_entries_max`, and fills one sooner.
    """

    open_store: ClassVar[OpenStore]
    inbox_entries_max: ClassVar[int] = INBOX_ENTRIES_MAX
    reached: ClassVar[Counter[str]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.reached = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.opened = AsyncExitStack()
        self.oracle = Oracle(self.inbox_entries_max)
        self.tokens: dict[SessionId, list[Token]] = {session: [] for session in SESSIONS}
        self.store: SessionStore

    @initialize()
    def open(self) -> None:
        """Open an empty store and begin with a session that somebody owns."""
        opening = type(self).open_store(self.clock)
        self.store = self.wait(self.opened.enter_async_context(opening))
        self.accept(SESSIONS[0], "c1", b"{}", None)
        self.renew("n1", LEASE_MS)
        self.claim(SESSIONS[0], "n1")

    def teardown(self) -> None:
        """Close the store."""
        self.wait(self.opened.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def attempt(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return a result, or the name of the error that was raised on purpose."""
        try:
            return self.wait(work)
        except PerdureError as error:
            return type(error).__name__

    def note(self, operation: str, outcome: str) -> None:
        """Count an outcome."""
        self.reached[f"{operation}: {outcome}"] += 1

    @rule(
        session=sessions,
        name=names,
        command=st.sampled_from([b"{}", b"[]"]),
        run=st.none() | statuses,
        generation=generations,
    )
    def accept(
        self, session: SessionId, name: str, command: bytes, run: str | None, generation: int = 0
    ) -> None:
        """Anybody accepts a command."""
        entry = InboxEntry(name, session, command, self.clock.now_ms())
        row = None if run is None else self.row(name, session, run)
        expected = self.oracle.accept(entry, row, self.clock.now_ms(), generation)
        found = self.attempt(self.store.accept(entry, row, generation))
        if not isinstance(found, str):
            assert (found.id, found.session) == (name, session)
            assert found.durability == self.store.durability
            found = "duplicate" if found.duplicate else "accepted"
        assert found == expected
        self.note("accept", expected)

    @rule(session=sessions, count=st.integers(1, 3))
    def accept_more(self, session: SessionId, count: int) -> None:
        """Anybody accepts commands that are new for certain."""
        for _ in range(count):
            self.accept(session, self.clock.fresh_id(), b"{}", "queued")

    @rule(session=sessions, owner=owners, reads=readers)
    def claim(self, session: SessionId, owner: str, reads: int | None = None) -> None:
        """A node claims."""
        nonce = self.clock.fresh_id()
        expected = self.oracle.claim(session, owner, nonce, self.clock.now_ms(), reads)
        found = self.wait(self.store.claim(session, owner, nonce, reads=reads))
        if isinstance(found, NotClaimed):
            assert (found.why, found.owner) == expected
            self.note("claim", found.why)
            return
        assert (found.token, plain(found.loaded)) == expected
        self.tokens[session].append(found.token)
        self.note("claim", "strike" if found.loaded.strikes else "claimed")
        if found.loaded.suspect:
            self.note("claim", "suspect")

    @precondition(lambda self: self.owned())
    @rule(data=st.data(), count=st.integers(1, 3))
    def commit(self, data: st.DataObject, count: int) -> None:
        """Owners submit steps one after the other, ahead of what is durable."""
        ahead: dict[SessionId, Ahead] = {}
        self.submit([self.right_step(data, ahead, self.owned()) for _ in range(count)])

    @rule(data=st.data(), count=st.integers(1, 3))
    def commit_wrongly(self, data: st.DataObject, count: int) -> None:
        """Nodes submit steps that may be wrong in any way, among right ones."""
        ahead: dict[SessionId, Ahead] = {}
        steps = [self.right_step(data, ahead, [*self.owned() * 2, *SESSIONS]) for _ in range(count)]
        wrong = data.draw(st.integers(0, count - 1))
        steps[wrong] = self.spoilt(data, steps[wrong])
        self.submit(steps)

    def submit(self, steps: list[StepCommit]) -> None:
        """Submit steps before anybody is told anything."""
        expected = self.oracle.commits(steps)
        assert self.wait(outcomes(self.store, *steps)) == expected
        refused = set()
        for step, outcome in zip(steps, expected, strict=True):
            claim = (step.session, step.token)
            self.note("commit", "after a refused one" if claim in refused else outcome)
            if outcome != "written":
                refused.add(claim)

    @rule(owner=owners, lease_ms=st.sampled_from([LEASE_MS] * 5 + [0]))
    def renew(self, owner: str, lease_ms: int) -> None:
        """A node's heartbeat."""
        expected = self.oracle.renew(owner, lease_ms, self.clock.now_ms())
        assert self.wait(self.store.renew(owner, lease_ms)) == expected
        self.note("renew", "in time" if expected else "too late")

    @rule(
        session=sessions,
        data=st.data(),
        snapshot=st.none() | st.tuples(st.integers(0, 9), st.binary(max_size=3)),
        quarantine=st.sampled_from([None, None, None, "why"]),
    )
    def release(
        self,
        session: SessionId,
        data: st.DataObject,
        snapshot: tuple[int, bytes] | None,
        quarantine: str | None,
    ) -> None:
        """A node gives a session up, or a person does it for it."""
        token = data.draw(self.some_token(session) | self.some_token(session) | st.none())
        expected = self.oracle.release(session, token, snapshot, quarantine)
        found = self.attempt(self.store.release(session, token, snapshot, quarantine))
        assert (found or "released") == expected
        if expected == "released" and quarantine:
            expected = "quarantine"
        self.note("release", expected)

    @rule(session=sessions, owner=owners)
    def set_aside(self, session: SessionId, owner: str) -> None:
        """A person puts a session in quarantine, and a node comes too late."""
        if session in self.oracle.facts:
            self.oracle.release(session, None, None, "by hand")
            self.wait(self.store.release(session, None, quarantine="by hand"))
            self.note("release", "quarantine")
        self.claim(session, owner)

    @rule(passed_ms=st.sampled_from([1, 1, LEASE_MS // 2, LEASE_MS]))
    def let_time_pass(self, passed_ms: int) -> None:
        """The store's clock moves."""
        self.clock.advance(passed_ms)

    @rule(
        offset=st.sampled_from([-(10**13), -1, 0, 10**13]), limit=st.integers(0, 4), reads=readers
    )
    def due(self, offset: int, limit: int, reads: int | None) -> None:
        """Recovery scans."""
        now = self.clock.now_ms()
        found = self.wait(self.store.due(now + offset, limit, reads=reads))
        check_due(found, limit, self.oracle.due(now + offset, now, reads))
        if found[0]:
            self.note("due", "somebody")
        elif found[1] is not None:
            self.note("due", "nobody yet")

    @rule(owner=owners, limit=st.integers(0, 2))
    def unread(self, owner: str, limit: int) -> None:
        """A node asks for what was accepted elsewhere for the sessions that it runs."""
        found = self.wait(self.store.unread(owner, limit))
        expected = self.oracle.unread(owner)
        assert len(found) == len(set(found)) == min(limit, len(expected))
        assert expected.issuperset(found)
        if found:
            self.note("unread", "something")

    @rule(session=sessions, name=names)
    def settled(self, session: SessionId, name: str) -> None:
        """Whoever accepted a command asks what became of it."""
        found = self.wait(self.store.settled(session, name))
        assert plain(found) == self.oracle.settled(session, name)
        if found is not None:
            self.note("settled", "refused" if found.refusal else "done")

    @rule(crowd=st.integers(0, 6))
    def distrust(self, crowd: int) -> None:
        """A backup was restored."""
        if crowd == 0:
            self.oracle.distrust(self.clock.now_ms())
            self.wait(self.store.distrust())

    @rule(session=sessions, after=st.integers(0, 6), limit=st.integers(0, 4))
    def read(self, session: SessionId, after: int, limit: int) -> None:
        """Somebody reads a page of a log."""
        found = self.wait(self.store.read(session, after, limit))
        assert found == self.oracle.read(session, after, limit)
        if found:
            self.note("read", "a page")

    @rule(
        tenant=st.sampled_from(TENANTS),
        run=st.none() | st.none() | names,
        agent=st.none() | st.sampled_from("ab"),
        key=st.none() | st.sampled_from(["k", "z"]),
        status=st.none() | statuses,
        before=st.none() | st.tuples(st.integers(0, 10), names),
        limit=st.integers(0, 4),
    )
    def list(self, **fields: Any) -> None:
        """Somebody looks for runs."""
        query = RunQuery(**fields)
        found = self.wait(self.store.list(query))
        assert plain(found) == self.oracle.list(query)
        if found and query.before:
            self.note("list", "a page")

    @invariant()
    def the_store_holds_what_the_oracle_holds(self) -> None:
        """Everything that can be read is compared."""
        if hasattr(self, "store"):
            self.wait(self.compare())

    async def compare(self) -> None:
        """Read the whole store."""
        now, store, oracle = self.clock.now_ms(), self.store, self.oracle
        queries = [RunQuery(tenant=tenant, limit=MANY) for tenant in TENANTS]
        check_due(await store.due(now, MANY), MANY, oracle.due(now, now))
        found = await asyncio.gather(
            *(store.load(session) for session in SESSIONS),
            *(store.read(session, 0, MANY) for session in SESSIONS),
            *(store.list(query) for query in queries),
            *(store.blob(address) for address in ADDRESSES),
        )
        assert [plain(one) for one in found] == [
            *(oracle.load(session) for session in SESSIONS),
            *(oracle.read(session, 0, MANY) for session in SESSIONS),
            *(oracle.list(query) for query in queries),
            *(oracle.contents.get(address) for address in ADDRESSES),
        ]

    def owned(self) -> builtins.list[SessionId]:
        """Return the sessions that have an owner."""
        return [session for session in SESSIONS if self.oracle.token(session) is not None]

    def some_token(self, session: SessionId) -> st.SearchStrategy[Token]:
        """Return the latest token of a session, mostly, or an older one, or one never given."""
        given = self.tokens[session]
        return st.sampled_from([*given[-1:] * 4, *given[-3:-1], Token(1, "never")])

    def row(self, run: str, session: SessionId, status: str) -> RunRow:
        """Return the row of a run; a tenant's runs are of one session each."""
        fields = {"id": f"{run}-{session.agent}", "session": session, "status": status}
        return msgspec.convert({**fields, "created_at": self.clock.now_ms() % 10}, RunRow)

    def right_step(
        self,
        data: st.DataObject,
        ahead: dict[SessionId, Ahead],
        candidates: builtins.list[SessionId],
    ) -> StepCommit:
        """Return a step that its owner may write after those before it."""
        session = data.draw(st.sampled_from(candidates))
        version, head, waiting = ahead.get(session) or self.standing(session)
        expected, records = version, []
        for body in data.draw(bodies):
            version, head = version + 1, link(head, body)
            records.append(Record(version, body, head))
        consumed = waiting[: data.draw(st.integers(0, len(waiting)))]
        ahead[session] = (version, head, waiting[len(consumed) :])
        status = data.draw(st.none() | statuses)
        refused = consumed[: data.draw(st.integers(0, 1))]
        return StepCommit(
            session=session,
            token=self.oracle.token(session) or Token(1, "never"),
            expected=expected,
            records=tuple(records),
            consumed=tuple(consumed),
            postponed=data.draw(st.integers(0, 3)),
            wake_at=data.draw(moments),
            rows=() if status is None else (self.row(data.draw(names), session, status),),
            snapshot=data.draw(st.none() | st.binary(max_size=3)),
            blobs=tuple(data.draw(contents).items()),
            refusals=tuple((name, b"no") for name in refused),
            generation=data.draw(generations),
        )

    def spoilt(self, data: st.DataObject, step: StepCommit) -> StepCommit:
        """Return a step with something wrong in it."""
        draw, change = data.draw, msgspec.structs.replace
        match draw(st.sampled_from(["token", "version", "records", "consumed"])):
            case "token":
                return change(step, token=draw(self.some_token(step.session)))
            case "version":
                return change(step, expected=step.expected + draw(st.sampled_from([-1, 1])))
            case "records":
                moved = [record._replace(seq=record.seq + 1) for record in step.records]
                return change(step, records=tuple(moved))
            case _:
                return change(step, consumed=(*step.consumed, draw(names)))

    def standing(self, session: SessionId) -> Ahead:
        """Return what the owner of a session knows of it."""
        loaded = self.oracle.load(session)
        if loaded is None:
            return 0, b"", []
        return loaded["version"], loaded["head"], [entry.id for entry in loaded["inbox"]]


def walk(
    machine: type[StoreMachine], *, walks: int = 25, steps: int = 40, rounds_max: int = 12
) -> None:
    """Take rounds of walks until every kind of answer has been given.

    Every round has a seed of its own: left to itself, Hypothesis repeats one round for ever
    wherever the environment says `CI`. A walk that goes wrong is shown as it is, since making it
    shorter takes minutes with a store in a server. Raises `AssertionError`.
    """
    config = settings(
        max_examples=walks,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    for number in range(rounds_max):
        run_state_machine_as_test(seed(number)(machine), settings=config)
        if machine.reached.keys() >= EVERYTHING:
            break
    missing = EVERYTHING - machine.reached.keys()
    assert not missing, f"after {rounds_max} rounds nothing has led to: {sorted(missing)}"


def check_due(
    found: tuple[list[SessionId], int | None],
    limit: int,
    expected: tuple[dict[SessionId, int], int | None],
) -> None:
    """Check what a scan found against when everything fell due: ties come in any order."""
    (sessions, next_at), (ready, expected_next) = found, expected
    assert len(set(sessions)) == len(sessions)
    assert [ready[session] for session in sessions] == sorted(ready.values())[:limit]
    assert next_at == expected_next


def plain(found: Any) -> Any:
    """Return a result as the oracle says it: structs as dictionaries of their fields."""
    if isinstance(found, list):
        return [plain(one) for one in found]
    return msgspec.structs.asdict(found) if isinstance(found, msgspec.Struct) else found
