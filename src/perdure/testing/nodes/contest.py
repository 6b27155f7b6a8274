"""The frozen leader with real processes: SIGSTOP at random moments, beyond the lease.

Several processes want the same sessions. One after the other is stopped wherever it is, until
others have gone on, and continued. Afterwards the auditor folds the logs against the traces.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from perdure.testing.conformance.claimant import entry
from perdure.testing.nodes.audit import VIOLATIONS, claims_and_commits
from perdure.testing.nodes.backends import Backend
from perdure.testing.nodes.contender import Contest, session_of
from perdure.testing.nodes.nursery import Nursery
from perdure.testing.nodes.recorder import read_traces
from perdure.testing.witness import Seen, Store

LEASE_MS = 250
CONTENDERS = 4
SESSIONS = 6
RECORDS_MAX = 100_000


class Contested(NamedTuple):
    """What came of a contest."""

    store: str
    stops: int
    events: int
    claims: int
    refused: int
    wrong: tuple[str, ...]
    seconds: float


async def play_contest(
    shared: Backend, stops: int, *, seed: int = 1, mutant: str = ""
) -> Contested:
    """Stop and continue contenders so many times."""
    began, chance = time.monotonic(), random.Random(seed)
    sessions = tuple(f"s{number}" for number in range(SESSIONS))
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-contest-"))
        space = await asyncio.to_thread(shared.fresh)
        reader = await shared.open(space)
        stack.push_async_callback(reader.close)
        for name in sessions:
            await reader.accept(entry("m1", session=session_of(name)))
        nursery = await stack.enter_async_context(Nursery())
        members = [
            await nursery.start(
                Contest(f"c{n}", shared.url(space), folder, sessions, LEASE_MS, seed, mutant)
            )
            for n in range(CONTENDERS)
        ]
        await asyncio.sleep(2 * LEASE_MS / 1000)
        for _ in range(stops):
            member = chance.choice(members)
            member.send(signal.SIGSTOP)
            await asyncio.sleep(LEASE_MS / 1000 * chance.uniform(0.8, 2))
            member.send(signal.SIGCONT)
            await asyncio.sleep(LEASE_MS / 1000 * chance.uniform(0.1, 0.5))
        codes = [await member.end(signal.SIGTERM) for member in members]
        store: Store = {}
        for name in sessions:
            session = session_of(name)
            records = tuple(await reader.read(session, 0, RECORDS_MAX))
            store[str(session)] = Seen(session, records, ("m1",))
        counts = claims_and_commits(store, read_traces(Path(folder)))
    figures = counts._asdict()
    wrong = [f"{figures[name]} {text}" for name, text in VIOLATIONS.items() if figures[name]]
    wrong += [f"a contender ended with {code}" for code in codes if code]
    return Contested(
        store=shared.name,
        stops=stops,
        events=sum(len(seen.records) for seen in store.values()),
        claims=counts.claims,
        refused=counts.fenced,
        wrong=tuple(f"{shared.name}: {one}" for one in wrong),
        seconds=time.monotonic() - began,
    )
