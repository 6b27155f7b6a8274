"""Several node processes on one store, each behind a network of its own, watched and restarted.

A scene is what a trouble (`troubles`) works on: it has the members, the proxies, the servers and
the clocks in its hands.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from msgspec.structs import replace

from perdure.core.errors import PerdureError
from perdure.core.runs import TERMINAL
from perdure.ports.session_store import RunQuery
from perdure.testing.ledger import Ledger, read_ledger
from perdure.testing.nodes.audit import Audit, Stall, audit
from perdure.testing.nodes.backends import Backend
from perdure.testing.nodes.member import FAILED, STALL_SIGNAL, TELL_SIGNAL, Life
from perdure.testing.nodes.nursery import Member, Nursery
from perdure.testing.nodes.proxy import Proxy
from perdure.testing.nodes.recorder import read_traces
from perdure.testing.witness import Store, see

NODES = 3
LEASE_MS = 1_000
SCAN_INTERVAL_MS = 400
WORLD_FILE = "ledger.jsonl"
POLL_SECONDS = 0.1
END_SECONDS_MAX = 40.0
"""How long all runs may take to their end once every trouble is over."""
FORGOTTEN_SECONDS = 4.0
"""How long nothing new may come before what is missing counts as forgotten."""
BUSY_SECONDS_MAX = 3.0
RECENTLY = 0.1
"""A node that claimed a session so many seconds ago is in the middle of running it."""
DRAIN_SECONDS_MAX = 15.0
RESTART_SECONDS = 0.2
RUNS_MAX = 1_000


class Scene:
    """Nodes, networks and servers, for as long as the block lasts."""

    def __init__(
        self,
        backend: Backend,
        ledger: Path,
        nursery: Nursery,
        errands: Sequence[str],
        *,
        nodes: int = NODES,
        seed: int = 1,
        speeds: Sequence[float | None] = (),
        false_clocks: bool = False,
        network: Callable[[str, int], Any] = Proxy,
        **life: Any,
    ) -> None:
        self.backend = backend
        self.chance = random.Random(seed)
        self.lease_seconds = life.get("lease_ms", LEASE_MS) / 1000
        self.members: dict[str, Member] = {}
        self.proxies: dict[str, list[Any]] = {}
        self.clocks: dict[str, Path] = {}
        self.restarts = 0
        self.gave_up = 0
        self.kills = 0
        self.stalls: list[Stall] = []
        self.set_back_at = 0.0
        self._ledger = ledger
        self._nursery = nursery
        self._errands = tuple(errands)
        self._false_clocks = false_clocks
        self._network = network
        self._nodes = nodes if backend.shared else 1
        self._speeds = [*speeds, *[None] * (self._nodes - len(speeds))]
        self._life = {"lease_ms": LEASE_MS, "scan_interval_ms": SCAN_INTERVAL_MS, **life}
        self._stack = AsyncExitStack()
        self._watches: list[asyncio.Task[None]] = []
        self._begun = asyncio.Event()
        self._left_alone: set[str] = set()
        self._over = False
        self._reader: Any = None

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _enter(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="perdure-scene-")
        self.folder = Path(self._stack.enter_context(folder))
        self.space = await asyncio.to_thread(self.backend.fresh)
        for number, speed in enumerate(self._speeds):
            name = f"n{number}"
            clock = self.folder / f"{name}.clock"
            clock.write_text("+0\n")
            nursery = self._nursery
            if self._false_clocks:
                nursery = Nursery(clock if speed is None else None, speed)
                await self._stack.enter_async_context(nursery)
            self.clocks[name] = clock
            self.proxies[name] = [
                await self._stack.enter_async_context(self._network(*address))
                for address in self.backend.addresses
            ]
            self._watches.append(
                asyncio.create_task(self._watch(nursery, self._life_of(name, number)))
            )
        await self._begun.wait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._forget_reader()
        await self._stack.aclose()
        await asyncio.to_thread(self.backend.forget, self.space)

    def any_member(self) -> Member:
        """Return a node that runs now, or one that ended just now."""
        return self.members[self.chance.choice(sorted(self.members))]

    def any_name(self) -> str:
        """Return the name of a node."""
        return self.chance.choice(sorted(self.proxies))

    def set_back(self) -> None:
        """Note that the store has lost from now on what it acknowledged last."""
        self.set_back_at = time.monotonic()

    def leave_alone(self, name: str) -> None:
        """Start a node no more once it has ended."""
        self._left_alone.add(name)

    async def kill(self, member: Member) -> None:
        """SIGKILL a node; it is started again soon."""
        self.kills += 1
        await member.end(signal.SIGKILL)

    async def stall(self, leases: float) -> None:
        """Let the loop of a node stand still for so many leases, in the middle of its work."""
        member = self.members[await self._busy()]
        began = time.monotonic()
        member.send(STALL_SIGNAL)
        await asyncio.sleep(leases * self.lease_seconds)
        self.stalls.append(Stall(member.life.name, began, time.monotonic()))

    async def _busy(self) -> str:
        """Return the name of a node that writes just now, or of any if none does for a while."""
        until = time.monotonic() + BUSY_SECONDS_MAX
        while (now := time.monotonic()) < until:
            lines = [trace.line for trace in read_traces(self.folder)]
            claims = [
                one for one in lines if one["what"] == "claimed" and one["at"] > now - RECENTLY
            ]
            if claims:
                return str(claims[-1]["node"])
            await asyncio.sleep(RECENTLY / 2)
        return self.any_name()

    async def pause(self, low: float, high: float) -> None:
        """Let some time pass: between so many leases."""
        await asyncio.sleep(self.lease_seconds * self.chance.uniform(low, high))

    async def server(self, action: Callable[[], Any]) -> None:
        """Have something done to a server that may take its time."""
        await asyncio.to_thread(action)

    def heal(self) -> None:
        """End every trouble with networks and clocks."""
        for clock in self.clocks.values():
            clock.write_text("+0\n")
        for proxies in self.proxies.values():
            for proxy in proxies:
                proxy.heal()

    async def ended(
        self, seconds_max: float = END_SECONDS_MAX, *, forgets: bool = False
    ) -> float | None:
        """Wait until every run has ended; return how long that took, None if it was too long.

        Of a store that `forgets`, every run that it still knows, a while after.
        """
        began = still = time.monotonic()
        while (now := time.monotonic()) < began + seconds_max:
            rows = await self.rows()
            done = {row.session.key for row in rows if row.status in TERMINAL}
            if done >= set(self._errands):
                return now - began
            if not forgets or not rows or len(done) < len({row.session.key for row in rows}):
                still = now
            elif now - still > FORGOTTEN_SECONDS:
                return still - began
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def tell(self) -> None:
        """Have every node write down where it stands."""
        for member in self.members.values():
            member.send(TELL_SIGNAL)
        await asyncio.sleep(POLL_SECONDS)

    async def rows(self) -> Sequence[Any]:
        """Return the rows of all runs; none while the store cannot be asked."""
        query = RunQuery(tenant="default", limit=RUNS_MAX)
        return await self._ask(lambda store: store.list(query)) or []

    async def drain(self) -> int:
        """SIGTERM every node; return how many did not end by themselves."""
        self._over = True
        stuck = 0
        for member in self.members.values():
            member.send(signal.SIGTERM)
        for member in self.members.values():
            try:
                await asyncio.wait_for(asyncio.shield(member.ended), DRAIN_SECONDS_MAX)
            except TimeoutError:
                stuck += 1
                await member.end(signal.SIGKILL)
        return stuck

    async def audit(self, quiet: Store, *, forgets: bool, stuck: int) -> Audit:
        """Judge what is left; every node has ended."""
        world = self.folder / WORLD_FILE
        await asyncio.to_thread(_settle, self._ledger, world)
        store = await self.store()
        return audit(
            store,
            read_ledger(world),
            read_traces(self.folder),
            quiet,
            identity=getattr(self._reader, "identity", ""),
            forgets=forgets,
            set_back_at=self.set_back_at,
            nodes_stuck=stuck,
            stalls=self.stalls,
        )

    async def store(self) -> Store:
        """Read the logs. Raises `PerdureError` when the store cannot be read."""
        until = time.monotonic() + END_SECONDS_MAX
        while time.monotonic() < until:
            found: Store | None = await self._ask(see)
            if found is not None:
                return found
            await asyncio.sleep(POLL_SECONDS)
        raise PerdureError("the store cannot be read although nothing troubles it")

    async def _ask(self, question: Callable[[Any], Awaitable[Any]]) -> Any:
        """Ask the store; None while it does not answer."""
        try:
            if self._reader is None:
                self._reader = await self.backend.reader(self.space)
            return await asyncio.wait_for(question(self._reader), 5)
        except (PerdureError, TimeoutError):
            await self._forget_reader()
            return None

    async def _forget_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    def _life_of(self, name: str, number: int) -> Life:
        addresses = [(proxy.host, proxy.port) for proxy in self.proxies[name]]
        life = Life(
            name=name,
            store=self.backend.url(self.space, addresses),
            cluster=self.backend.cluster_url(self.space, addresses),
            out=str(self.folder),
            ledger=str(self._ledger),
            world=str(self.folder / WORLD_FILE),
            errands=self._errands[number :: self._nodes],
        )
        return replace(life, **self._life)

    async def _watch(self, nursery: Nursery, life: Life) -> None:
        """Start a node, and start it again whenever it ended."""
        while not self._over:
            member = self.members[life.name] = await nursery.start(life)
            if len(self.members) == self._nodes:
                self._begun.set()
            code = await asyncio.shield(member.ended)
            if life.name in self._left_alone:
                return
            self.restarts += 1
            self.gave_up += code == FAILED
            await asyncio.sleep(RESTART_SECONDS)


def _settle(address: Path, world: Path) -> None:
    ledger = Ledger(address, world)
    ledger.settle()
    ledger.close()


class Cell(NamedTuple):
    """One store under one trouble."""

    store: str
    trouble: str
    runs: int
    violations: tuple[str, ...]
    kills: int
    restarts: int
    gave_up: int
    claims: int
    fenced: int
    in_doubt: int
    recovery_seconds: float
    seconds: float
    evidence: str = ""
    """What the nodes said last, when something was wrong."""
