"""Processes that die while they write: `crash PATH KILLS SEED` and `fill PATH`.

Every life opens the same store, checks that all that earlier lives had acknowledged is there,
writes on, and says through a pipe what is acknowledged, until its parent kills it: at a random
acknowledgement, or at a random fault point of the writer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sys
from typing import Any

from perdure.adapters.stores.sqlite import SqliteStore
from perdure.core.codec import genesis, verify_chain
from perdure.core.errors import StoreError
from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock
from perdure.testing.conformance.claimant import (
    SESSION,
    Claimant,
    claim,
    created,
    entry,
    submit,
)
from perdure.testing.faults import Fault, FaultPlan

SESSIONS = [SESSION._replace(key=f"k{n}") for n in range(8)]
BODY = b'{"type":"model_replied","text":"' + b"word " * 190 + b'"}'
Acknowledged = dict[str, Any]


async def live(path: str, known: Acknowledged, pipe: int) -> None:
    """Check what is known, then write until killed."""
    store = await SqliteStore.open(path, FakeClock())
    for lost in await check(store, known):
        os.write(pipe, f"lost {lost}\n".encode())
    life = known["lives"]
    for session in SESSIONS:
        await store.accept(entry(f"life {life}", session=session))
        go_on(store, await claim(store, session, nonce=f"life {life}"), pipe)
    number = 0
    while True:
        number += 1
        name = f"{life}.{number}"
        await store.accept(entry(name, session=SESSIONS[number % len(SESSIONS)]))
        os.write(pipe, f"accepted {number % len(SESSIONS)} {name}\n".encode())
        if number % 500 == 499:
            return


def go_on(store: SessionStore, owner: Claimant, pipe: int) -> None:
    """Keep two commits of a session under way, for ever."""

    def write() -> None:
        step = owner.step(BODY)

        def done(error: StoreError | None) -> None:
            assert error is None, error
            os.write(pipe, f"written {owner.session.key[1:]} {step.expected + 1}\n".encode())
            write()

        store.commit(step, done)

    write()
    write()


async def check(store: SessionStore, known: Acknowledged) -> list[str]:
    """Return what was acknowledged and is not there."""
    lost = []
    for number, version in known["written"].items():
        session = SESSIONS[number]
        log = await store.read(session, 0, 10**6)
        verify_chain(genesis(session), 0, log)
        if len(log) < version or any(record.body != BODY for record in log):
            lost.append(f"{session}: {len(log)} events of {version}")
    for number, name in known["accepted"]:
        receipt = await store.accept(entry(name, session=SESSIONS[number]))
        if not receipt.duplicate:
            lost.append(f"{SESSIONS[number]}: command {name}")
    return lost


def plan(chance: random.Random) -> tuple[FaultPlan | None, int]:
    """Return where a life ends: at a fault point, or after a number of acknowledgements."""
    if chance.random() < 0.5:
        return None, chance.randint(1, 400)
    sites = ["store.before_begin", "store.before_commit", "store.after_commit"]
    return FaultPlan((Fault(chance.choice(sites), chance.randint(20, 120)),)), 10**9


def crash(path: str, kills: int, seed: int) -> None:
    """Live and die, then report."""
    chance = random.Random(seed)
    known: Acknowledged = {"lives": 0, "written": {}, "accepted": [], "lost": []}
    while known["lives"] < kills:
        known["lives"] += 1
        reading, writing = os.pipe()
        faults, acknowledgements = plan(chance)
        child = os.fork()
        if child == 0:
            if faults is not None:
                faults.install()
            asyncio.run(live(path, known, writing))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            for count, line in enumerate(told, 1):
                note(known, line)
                if count == acknowledgements:
                    os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"life {known['lives']} ended by itself: {status}"
    known["lost"] += asyncio.run(last_check(path, known))
    acknowledged = sum(known["written"].values()) + len(known["accepted"])
    print(json.dumps({"kills": kills, "acknowledged": acknowledged, "lost": known["lost"]}))


def note(known: Acknowledged, line: str) -> None:
    """Take down what a life says."""
    what, rest = line.rstrip("\n").split(" ", 1)
    if what == "lost":
        known["lost"].append(rest)
        return
    number, last = rest.split(" ")
    if what == "written":
        known["written"][int(number)] = int(last)
    else:
        known["accepted"].append((int(number), last))


async def last_check(path: str, known: Acknowledged) -> list[str]:
    """Open the store once more."""
    store = await SqliteStore.open(path, FakeClock())
    lost = await check(store, known)
    await store.close()
    return lost


async def fill(path: str) -> None:
    """Write until the file may not grow any more; say what was raised and what was acknowledged."""
    store = await SqliteStore.open(path, FakeClock())
    owner = await created(store)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    acknowledged, error = 0, None
    while error is None:
        (error,) = await submit(store, owner.step(BODY))
        acknowledged += error is None
    print(type(error).__name__, acknowledged, error)
    await store.close()


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        asyncio.run(fill(sys.argv[2]))
    else:
        crash(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
