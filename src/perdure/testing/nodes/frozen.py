"""The frozen leader: a holder is paused beyond its lease, another goes on, and the first wakes.

It happens to clients of a store, with no runtime that would behave: whoever wakes tries everything
that it had in mind, and more. Leases are short and real, so the store's own clock decides. A round
is wrong when something stale was accepted, and as much when the rightful holder was refused.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from perdure.core.codec import Record, genesis, verify_chain
from perdure.core.errors import BrokenChain, Fenced, StoreError, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, NotClaimed, SessionStore, StepCommit
from perdure.testing.conformance.claimant import Claimant, entry, submit
from perdure.testing.nodes.proxy import Direction, Proxy

LEASE_MS = 60
CLOCK_MS = 5
"""How much earlier a lease may end than by our clock: stores count whole milliseconds."""
LONG_LEASE_MS = 60_000
TAKEOVER_SECONDS_MAX = 10.0
POLL_SECONDS = 0.004
ANSWER_SECONDS_MIN = 2.0
"""Whoever writes on so long after it lost a session is not refused any more."""
ANSWER_SECONDS_MAX = 15.0
HELD_SECONDS_MAX = 2.0
REPEATED = 0.3
"""How often a holder writes a step again that was written: it may not have heard so."""
AGENT = "frozen"
STEPS_BEFORE_MAX = 2
ON_ITS_WAY = ("claiming", "committing", "committed", "renewing", "releasing")
"""Where something is under way to the store, or its answer back: it takes a proxy to hold it."""
POINTS = ("claimed", "decided", "running on", *ON_ITS_WAY)


class Hand(NamedTuple):
    """A client of the store: a connection of its own, and the network to it if it can be held."""

    store: SessionStore
    proxies: tuple[Proxy, ...] = ()

    def heal(self) -> None:
        """Let everything through."""
        for proxy in self.proxies:
            proxy.heal()


class Round(NamedTuple):
    """One round: where the holder was paused, what it was told afterwards, and what was wrong."""

    number: int
    point: str
    told: Counter[str]
    wrong: tuple[str, ...]


class Frozen(NamedTuple):
    """The figures of many rounds; `wrong` names the first of what was wrong."""

    store: str
    rounds: int
    by_point: dict[str, int]
    refused: int
    in_doubt: int
    wrong: tuple[str, ...]
    wrong_rounds: int
    first_wrong: int
    """The round that was wrong first; 0 if none was."""
    seconds: float


class _Step(NamedTuple):
    step: StepCommit
    outcome: str
    late: bool
    """Whether it was sent, or can only have arrived, after another one had the claim."""


class _Rounds:
    """One round at a time between two clients, the first of which is paused."""

    def __init__(self, number: int, point: str, chance: random.Random) -> None:
        self.number = number
        self.point = point
        self.chance = chance
        self.session = SessionId("default", AGENT, f"r{number}-{chance.getrandbits(40):x}")
        self.wrong: list[str] = []
        self.told: Counter[str] = Counter()
        self.steps: list[_Step] = []
        self.bodies = 0
        self.taken_at = float("inf")
        """When another one had the claim."""

    def next_step(self, claimant: Claimant, **fields: Any) -> StepCommit:
        """Return the next step of a claimant; its event says under which epoch it was decided."""
        self.bodies += 1
        body = {"epoch": claimant.token.epoch, "n": self.bodies}
        return claimant.step(msgspec.json.encode(body), **fields)

    async def write(self, hand: Hand, *steps: StepCommit, late: bool) -> list[str]:
        """Submit steps and keep what was said of each."""
        errors = await asyncio.wait_for(submit(hand.store, *steps), ANSWER_SECONDS_MAX)
        names = ["written" if error is None else type(error).__name__ for error in errors]
        self.steps += [_Step(step, name, late) for step, name in zip(steps, names, strict=True)]
        if late:
            self.told.update(names)
        return names


async def play(number: int, point: str, chance: random.Random, a: Hand, b: Hand) -> Round:
    """Play one round."""
    round_ = _Rounds(number, point, chance)
    try:
        await _play(round_, a, b)
    except TimeoutError:
        round_.wrong.append("a store did not answer at all")
    except StoreError as error:
        round_.wrong.append(f"the rightful holder was told {error!r}")
    finally:
        a.heal()
        b.heal()
    return Round(number, point, round_.told, tuple(dict.fromkeys(round_.wrong)))


async def _play(r: _Rounds, a: Hand, b: Hand) -> None:
    names = {"a": f"a-{r.session.key}", "b": f"b-{r.session.key}"}
    await b.store.accept(entry("m1", session=r.session))
    sent = time.monotonic()
    await a.store.renew(names["a"], LEASE_MS)
    paused = _Paused(r, a, names["a"])
    await paused.up_to_the_point()
    before = sum(len(one.step.records) for one in r.steps if one.outcome == "written")
    taken = await _take_over(r, b, names["b"], paused, sent + (LEASE_MS - CLOCK_MS) / 1000)
    r.taken_at = time.monotonic()
    if taken is None or r.wrong:
        await paused.give_up()
        return
    if taken.version < before:
        r.wrong.append(f"a claim showed {taken.version} events, and {before} were acknowledged")
    for _ in range(r.chance.randrange(3)):
        await _rightful(r, b, taken)
    await paused.wake()
    await _rightful(r, b, taken)
    if not await b.store.renew(names["b"], LONG_LEASE_MS):
        r.wrong.append("a lease of a minute ran out")
    await _rightful(r, b, taken)
    await b.store.release(r.session, taken.token)
    await _look(r, b, taken)


async def _rightful(r: _Rounds, b: Hand, taken: Claimant) -> None:
    """The holder writes a step: nothing but an unreachable store may keep it from that."""
    step = r.next_step(taken)
    outcomes = await r.write(b, step, late=False)
    if outcomes != ["written"]:
        r.wrong.append(f"the rightful holder was told {outcomes[0]}")
    elif r.chance.random() < REPEATED and await r.write(b, step, late=False) == ["written"]:
        r.wrong.append("a commit was accepted twice")


async def _take_over(
    r: _Rounds, b: Hand, name: str, paused: _Paused, alive_until: float
) -> Claimant | None:
    await b.store.renew(name, LONG_LEASE_MS)
    until = time.monotonic() + TAKEOVER_SECONDS_MAX
    while time.monotonic() < until:
        found = await b.store.claim(r.session, name, f"{name}-{r.chance.getrandbits(60):x}")
        if isinstance(found, Claimed):
            if paused.claimant is not None:
                if time.monotonic() < alive_until:
                    r.wrong.append("a claim was given while the lease of another was alive")
                if found.token.epoch <= paused.claimant.token.epoch:
                    r.wrong.append("the epoch of a claim is not greater than the one before")
            return Claimant(found)
        if found.why != "held":
            r.wrong.append(f"a session that somebody held was called {found.why}")
            return None
        await asyncio.sleep(POLL_SECONDS)
    r.wrong.append("nobody could take the session over")
    return None


class _Paused:
    """The holder that is paused, and what it has in mind."""

    def __init__(self, r: _Rounds, hand: Hand, name: str) -> None:
        self._r = r
        self._hand = hand
        self._name = name
        self._under_way: asyncio.Future[Any] | None = None
        self.claimant: Claimant | None = None
        self._planned: list[StepCommit] = []

    async def up_to_the_point(self) -> None:
        """Do what is done until the pause; something may be under way then."""
        r, store, point = self._r, self._hand.store, self._r.point
        if point == "claiming":
            way = r.chance.choice(["requests", "answers"])
            await self._hold(way, store.claim(r.session, self._name, f"{self._name}-n"))
            return
        found = await store.claim(r.session, self._name, f"{self._name}-n")
        if isinstance(found, NotClaimed):
            r.wrong.append(f"a free session was called {found.why}")
            return
        self.claimant = me = Claimant(found)
        for _ in range(r.chance.randrange(STEPS_BEFORE_MAX + 1)):
            await r.write(self._hand, r.next_step(me), late=False)
        if point == "decided":
            self._planned = [r.next_step(me) for _ in range(r.chance.randint(1, 3))]
        elif point == "running on":
            self._under_way = asyncio.ensure_future(self._run_on(me))
        elif point in ("committing", "committed"):
            self._planned = [r.next_step(me)]
            way = "requests" if point == "committing" else "answers"
            late = point == "committing"
            await self._hold(way, r.write(self._hand, *self._planned, late=late))
        elif point == "renewing":
            await self._hold("requests", store.renew(self._name, LEASE_MS))
        elif point == "releasing":
            await self._hold("requests", self._release())

    async def give_up(self) -> None:
        """Do nothing more: the round is lost already."""
        self._hand.heal()
        if self._under_way is not None:
            ending = asyncio.gather(self._under_way, return_exceptions=True)
            await asyncio.wait([ending], timeout=ANSWER_SECONDS_MAX)

    async def wake(self) -> None:
        """Let what is under way arrive, and try everything."""
        self._hand.heal()
        if self._under_way is not None:
            await self._arrives(self._under_way)
        me = self.claimant
        if me is None:
            return
        attempts: list[Callable[[], Awaitable[None]]] = [
            self._write_on, self._write_again, self._write_what_it_reads, self._renew, self._let_go,
        ]  # fmt: skip
        self._r.chance.shuffle(attempts)
        for attempt in (*attempts, self._write_what_it_reads):
            await attempt()

    async def _hold(self, way: str, work: Awaitable[Any]) -> None:
        held: list[Direction] = [getattr(proxy, way) for proxy in self._hand.proxies]
        for direction in held:
            direction.hold()
        self._under_way = asyncio.ensure_future(work)
        caught = [asyncio.create_task(direction.caught()) for direction in held]
        await asyncio.wait(caught, timeout=HELD_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        for task in caught:
            task.cancel()

    async def _arrives(self, under_way: asyncio.Future[Any]) -> None:
        """Take what becomes of the operation that was under way."""
        r, point = self._r, self._r.point
        try:
            found = await asyncio.wait_for(under_way, ANSWER_SECONDS_MAX)
        except Unavailable:
            r.told["Unavailable"] += 1
            return
        except Fenced:
            r.told["Fenced"] += 1
            return
        if point == "claiming" and isinstance(found, Claimed):
            self.claimant = Claimant(found)
        elif point == "renewing" and found:
            r.wrong.append("a lease that had run out was renewed as if it had not")
        elif point == "releasing":
            r.wrong.append("a release with an old token was accepted")

    async def _run_on(self, me: Claimant) -> None:
        """Write on without a lease until it is refused: nobody told it that it may not."""
        until = time.monotonic() + TAKEOVER_SECONDS_MAX
        while time.monotonic() < until and not self._r.wrong:
            if time.monotonic() > self._r.taken_at + ANSWER_SECONDS_MIN:
                self._r.wrong.append("a stale commit was accepted")
                return
            step = self._r.next_step(me)
            await asyncio.sleep(self._r.chance.random() * POLL_SECONDS)
            if await self._r.write(self._hand, step, late=False) != ["written"]:
                self._planned = [step]
                self._r.told[self._r.steps[-1].outcome] += 1
                return

    async def _write_on(self) -> None:
        """Write what was decided, in one go with what follows."""
        assert self.claimant is not None
        me = self.claimant
        known = {one.step for one in self._r.steps}
        planned = [step for step in self._planned if step not in known]
        more = [self._r.next_step(me) for _ in range(2)]
        await self._refused(*planned, *more)

    async def _write_again(self) -> None:
        """Write again what was under way, as a driver does that repeats in the blind."""
        if self._planned:
            await self._refused(self._planned[0])

    async def _write_what_it_reads(self) -> None:
        """Read the session as it is now, and write after it under the old claim."""
        assert self.claimant is not None
        loaded = await self._hand.store.load(self._r.session)
        if loaded is None:
            self._r.wrong.append("the session is gone")
            return
        again = Claimant(Claimed(self.claimant.token, loaded))
        await self._refused(self._r.next_step(again, consumed=tuple(e.id for e in loaded.inbox)))

    async def _refused(self, *steps: StepCommit) -> None:
        for outcome in await self._r.write(self._hand, *steps, late=True):
            if outcome == "written":
                self._r.wrong.append("a stale commit was accepted")

    async def _renew(self) -> None:
        if self._r.point == "claiming":
            return
        alive = await self._hand.store.renew(self._name, LEASE_MS)
        if alive and self._r.point != "renewing" and not self._renewed:
            self._r.wrong.append("a lease that had run out was renewed as if it had not")
        self._renewed = True

    _renewed = False

    async def _release(self) -> None:
        assert self.claimant is not None
        snapshot = (self.claimant.version, b"of somebody who was paused")
        await self._hand.store.release(self._r.session, self.claimant.token, snapshot)

    async def _let_go(self) -> None:
        try:
            await self._release()
        except (Fenced, Unavailable) as error:
            self._r.told[type(error).__name__] += 1
        else:
            self._r.wrong.append("a release with an old token was accepted")


async def _look(r: _Rounds, hand: Hand, taken: Claimant) -> None:
    """Read the log: what was acknowledged is in it, what was refused is not, and in order."""
    records = await hand.store.read(r.session, 0, 10_000)
    loaded = await hand.store.load(r.session)
    log = {record.body for record in records}
    for step, outcome, late in r.steps:
        there = [record.body in log for record in step.records]
        if outcome == "written" and not all(there):
            r.wrong.append("an acknowledged commit is not in the log")
        if outcome in ("Fenced", "Conflict") and any(there) and not _told_before(r, step):
            r.wrong.append(f"a commit is in the log although it was refused as {outcome}")
        if outcome == "written" and late:
            r.wrong.append("a stale commit was accepted")
    r.wrong += _disorder(r.session, records)
    if loaded is None or loaded.version != len(records) or loaded.snapshot is not None:
        r.wrong.append("the session is not what its log says")
    if len(records) != taken.version:
        r.wrong.append("the log has other events than the rightful holder knows")


def _told_before(r: _Rounds, step: StepCommit) -> bool:
    """Say whether the same step was sent twice: once it was written, it is refused."""
    return sum(one.step is step for one in r.steps) > 1


def _disorder(session: SessionId, records: Sequence[Record]) -> list[str]:
    wrong = []
    try:
        verify_chain(genesis(session), 0, records)
    except BrokenChain as error:
        wrong.append(f"an event was written on a base that was not its own: {error}")
    epochs = [msgspec.json.decode(record.body)["epoch"] for record in records]
    if epochs != sorted(epochs):
        wrong.append("the epochs of the log go back")
    return wrong


async def play_rounds(
    store: str,
    pairs: Sequence[tuple[Hand, Hand]],
    rounds: int,
    *,
    seed: int = 1,
    stop_at_wrong: bool = False,
) -> Frozen:
    """Play so many rounds, one at a time with each pair of clients; points come in turn."""
    began = time.monotonic()
    numbers = iter(range(1, rounds + 1))
    played: list[Round] = []

    async def lane(pair: tuple[Hand, Hand]) -> None:
        points = POINTS if pair[0].proxies else POINTS[: -len(ON_ITS_WAY)]
        for number in numbers:
            chance = random.Random(f"{seed}-{number}")
            point = points[number % len(points)]
            played.append(await play(number, point, chance, *pair))
            if stop_at_wrong and played[-1].wrong:
                for _ in numbers:
                    pass

    await asyncio.gather(*(lane(pair) for pair in pairs))
    return _figures(store, played, time.monotonic() - began)


def _figures(store: str, played: Sequence[Round], seconds: float) -> Frozen:
    bad = sorted((one for one in played if one.wrong), key=lambda one: one.number)
    told: Counter[str] = Counter()
    for one in played:
        told.update(one.told)
    return Frozen(
        store=store,
        rounds=len(played),
        by_point=dict(Counter(one.point for one in played)),
        refused=told["Fenced"] + told["Conflict"],
        in_doubt=told["Unavailable"],
        wrong=tuple(
            f"{store}: round {one.number}, paused while {one.point}: {'; '.join(one.wrong)}"
            for one in bad
        ),
        wrong_rounds=len(bad),
        first_wrong=bad[0].number if bad else 0,
        seconds=seconds,
    )
