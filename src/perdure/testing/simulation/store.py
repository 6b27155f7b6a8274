"""The real MemoryStore behind a network: every node has a connection that can be slow or fail.

A request takes its time, is applied whole or not at all, and its answer takes its time. Either can
get lost: then the node is told `Unavailable`, and whether it was applied stays open, as the port
says. The commits of one session are applied, and answered, in the order they were submitted, and
what was submitted before a refusal is known is refused with it. Everything else may overtake.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import types
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Generator
from typing import Any, Protocol, TypeVar

from perdure.adapters.stores.memory import MemoryStore
from perdure.core.codec import Record
from perdure.core.durability import Durability
from perdure.core.errors import PerdureError, StoreError, Unavailable
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    Loaded,
    NotClaimed,
    Receipt,
    RunQuery,
    Settled,
    StepCommit,
    Token,
)
from perdure.testing.simulation.loop import Died, Process, VirtualLoop
from perdure.testing.simulation.weather import Weather

T = TypeVar("T")


class Observer(Protocol):
    """Sees what the store does, at the moment it does it."""

    def accepted(self, entry: InboxEntry, receipt: Receipt) -> None:
        """A command was accepted, or known."""

    def claimed(self, life: str, session: SessionId, answer: Claimed | NotClaimed) -> None:
        """Somebody asked for a session."""

    def submitted(self, step: StepCommit, under_way: Collection[StepCommit]) -> None:
        """A step is on its way while others of its session are not answered yet."""

    def committed(self, life: str, step: StepCommit) -> None:
        """A step is durable."""

    def refused(self, life: str, step: StepCommit, error: StoreError, pending: int) -> None:
        """A step was refused, and `pending` more of the same session are behind it."""

    def released(self, life: str, session: SessionId, snapshot: bool, quarantined: bool) -> None:
        """A claim was given up."""

    def renewed(self, life: str, lease_ms: int, alive: bool) -> None:
        """A lease was renewed, or begun anew."""

    def lost(self, life: str, what: str, applied: bool) -> None:
        """A request or its answer got lost on the way."""


class Waiting(Exception):
    """The store did not answer at once, as it must when nobody broke it."""


def perform(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine of the memory store returns. Raises `Waiting`."""
    done, result = _begin(work)
    if not done:
        work.close()
        raise Waiting("the store is not at rest")
    answer: T = result
    return answer


def perform_at_rest(loop: VirtualLoop, work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine of the store returns when nothing else runs. Raises `Waiting`."""
    done, result = _begin(work)
    if not done:
        task = loop.spawn(loop.world, _rest(work, result))
        loop.run_ready()
        if not task.done():
            raise Waiting("the store is not at rest")
        result = task.result()
    answer: T = result
    return answer


def _begin(work: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Go through a coroutine as far as it gets: whether it is done, and its result or wait."""
    try:
        return False, work.send(None)
    except StopIteration as stop:
        return True, stop.value


@types.coroutine
def _go_on(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that waits already; only a broken store does."""
    try:
        while True:
            try:
                given = yield waits_for
            except BaseException as error:  # noqa: BLE001  it is for the coroutine to handle
                waits_for = work.throw(error)
            else:
                waits_for = work.send(given)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _rest(work: Coroutine[Any, Any, T], waits_for: Any) -> T:
    result: T = await _go_on(work, waits_for)
    return result


class Server:
    """The one store of a world, and who is told of what it does."""

    def __init__(self, store: MemoryStore, loop: VirtualLoop, observer: Observer) -> None:
        self.store = store
        self.observer = observer
        self._loop = loop

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Apply a step, and say at once how it went."""
        self._loop.at_once(self.store.commit, step, done)

    def ask(
        self, name: str, args: tuple[Any, ...], told: Callable[[Any, Exception | None], None]
    ) -> None:
        """Do what a request asks for, and tell its result or error: at once, if it can be."""

        def begin() -> None:
            work = getattr(self.store, name)(*args)
            try:
                done, result = _begin(work)
            except PerdureError as error:
                told(None, error)
                return
            if done:
                told(result, None)
            else:
                self._loop.create_task(self._go_on(work, result, told))

        self._loop.at_once(begin)

    async def _go_on(
        self, work: Any, waits_for: Any, told: Callable[[Any, Exception | None], None]
    ) -> None:
        try:
            result = await _rest(work, waits_for)
        except PerdureError as error:
            told(None, error)
        else:
            told(result, None)


class _Line:
    """The commits of one session on one connection, first come first served."""

    __slots__ = ("answers", "steps")

    def __init__(self) -> None:
        self.steps: deque[tuple[StepCommit, CommitDone, str]] = deque()
        self.answers: deque[tuple[CommitDone, StoreError | None, StepCommit]] = deque()


class Connection:
    """A node's way to the store: the `SessionStore` that its runtime is given."""

    durability: Durability = "memory"

    def __init__(
        self,
        server: Server,
        loop: VirtualLoop,
        process: Process,
        weather: Weather,
        chance: random.Random,
    ) -> None:
        self.identity = server.store.identity
        self._server = server
        self._loop = loop
        self._process = process
        self._weather = weather
        self._draw = chance.random
        self._lines: dict[SessionId, _Line] = {}
        self._doomed: dict[tuple[SessionId, Token], StoreError] = {}
        self._cut = False

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox."""
        receipt: Receipt = await self._ask("accept", entry, row, generation)
        return receipt

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it."""
        asked = (session, owner, nonce, strikes_max, reads)
        claimed: Claimed | NotClaimed = await self._ask("claim", *asked)
        return claimed

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session without the right to write it."""
        loaded: Loaded | None = await self._ask("load", session)
        return loaded

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm the lease."""
        alive: bool = await self._ask("renew", owner, lease_ms)
        return alive

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim."""
        await self._ask("release", session, token, snapshot, quarantine)

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return what is due."""
        asked = (now, limit, agents, reads)
        found: tuple[builtins.list[SessionId], int | None] = await self._ask("due", *asked)
        return found

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return sessions of an owner for which something was accepted."""
        found: builtins.list[SessionId] = await self._ask("unread", owner, limit)
        return found

    async def distrust(self) -> None:
        """Make every session suspect."""
        await self._ask("distrust")

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry."""
        found: Settled | None = await self._ask("settled", session, id)
        return found

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return records."""
        records: builtins.list[Record] = await self._ask("read", session, after, limit)
        return records

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match."""
        rows: builtins.list[RunRow] = await self._ask("list", query)
        return rows

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        body: bytes | None = await self._ask("blob", address)
        return body

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit a step: it is applied after those of the same session before it."""
        self._alive()
        line = self._lines.get(step.session)
        if line is None:
            line = self._lines[step.session] = _Line()
        if line.steps or line.answers:
            under_way = [one for *_, one in line.answers] + [one for one, *_ in line.steps]
            self._server.observer.submitted(step, under_way)
        line.steps.append((step, done, self._weather.fate(self._draw)))
        loop = self._loop
        loop.schedule(
            loop.world, loop.now_us + self._weather.delay_us(self._draw), self._apply, line
        )

    def _alive(self) -> None:
        if self._process.dead:
            raise Died

    async def _ask(self, name: str, *args: Any) -> Any:
        self._alive()
        loop = self._loop
        answer: asyncio.Future[Any] = loop.create_future()
        when_us = loop.now_us + self._weather.delay_us(self._draw)
        loop.schedule(loop.world, when_us, self._serve, answer, name, args)
        return await answer

    def _gone(self) -> bool:
        """The node died with requests on their way: up to some point they arrive."""
        if self._process.dead and not self._cut:
            self._cut = self._draw() < 0.5
        return self._cut

    def _serve(self, answer: asyncio.Future[Any], name: str, args: tuple[Any, ...]) -> None:
        if self._gone():
            return
        fate = self._weather.fate(self._draw)

        def told(result: Any, error: Exception | None) -> None:
            if error is None and fate != "request lost":
                self._tell(name, args, result)
            if fate != "fine":
                self._server.observer.lost(self._process.name, name, fate == "answer lost")
                error = Unavailable(f"no answer to {name}")
            if not self._process.dead:
                loop = self._loop
                when_us = loop.now_us + self._weather.delay_us(self._draw)
                loop.schedule(self._process, when_us, _settle, answer, result, error)

        if fate == "request lost":
            told(None, None)
        else:
            self._server.ask(name, args, told)

    def _tell(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        observer, life = self._server.observer, self._process.name
        if name == "accept":
            observer.accepted(args[0], result)
        elif name == "claim":
            observer.claimed(life, args[0], result)
        elif name == "renew":
            observer.renewed(life, args[1], result)
        elif name == "release":
            observer.released(life, args[0], args[2] is not None, args[3] is not None)

    def _apply(self, line: _Line) -> None:
        step, done, fate = line.steps.popleft()
        if self._gone():
            return
        error = self._doomed.get((step.session, step.token))
        if error is not None:
            self._answer_later(line, step, done, error)
        elif fate == "request lost":
            self._server.observer.lost(self._process.name, "commit", applied=False)
            self._answer_later(line, step, done, Unavailable("no answer to commit"))
        else:
            self._server.commit(step, lambda why: self._applied(line, step, done, fate, why))

    def _applied(
        self, line: _Line, step: StepCommit, done: CommitDone, fate: str, error: StoreError | None
    ) -> None:
        life, observer = self._process.name, self._server.observer
        if error is not None:
            observer.refused(life, step, error, len(line.steps))
        else:
            observer.committed(life, step)
            if fate == "answer lost":
                observer.lost(life, "commit", applied=True)
                error = Unavailable("no answer to commit")
        self._answer_later(line, step, done, error)

    def _answer_later(
        self, line: _Line, step: StepCommit, done: CommitDone, error: StoreError | None
    ) -> None:
        if error is not None:
            self._doomed[step.session, step.token] = error
        if not self._process.dead:
            line.answers.append((done, error, step))
            loop = self._loop
            when_us = loop.now_us + self._weather.delay_us(self._draw)
            loop.schedule(self._process, when_us, _answer, line)


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


def _answer(line: _Line) -> None:
    done, error, _ = line.answers.popleft()
    done(error)
