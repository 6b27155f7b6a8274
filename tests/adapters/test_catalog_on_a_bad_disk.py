"""A disk that fails under the catalog: what was told is kept, and it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import apsw
import pytest

from perdure.adapters.catalog.sqlite import queries
from perdure.adapters.catalog.sqlite.catalog import SCHEMA
from perdure.adapters.sqlite import checks, write_thread
from perdure.adapters.sqlite.schema import Migration
from perdure.adapters.sqlite.write_thread import WriteThread
from perdure.core.errors import Unavailable
from perdure.ports.entries import Agent
from perdure.testing.disk import Disk
from perdure.testing.disk_faults import ERRORS, Fault, FaultyDisk

PATH = Path("/nowhere/catalog.db")
TENANT = "tenant"
WRITES = 6
CHECKPOINT_PAGES = 10
"""So few that there are checkpoints, and a log that is written over."""

PARTS = 4


class Life(NamedTuple):
    """What became of writes: those that were acknowledged, and those whose fate is not known."""

    told: list[str]
    unknown: list[str]
    at_loss: Disk
    """What is found after a loss of power right after the last of them."""


def opened(disk: Disk) -> apsw.Connection:
    """Open the catalog of a disk as a process does."""
    db = checks.connect_to_write(PATH, "FULL", connect=disk.connect)
    with checks.refusing(PATH):
        SCHEMA.migrate(db, PATH, 0, migrations())
    return db


@cache
def migrations() -> list[Migration]:
    """Read them once."""
    return SCHEMA.migrations()


def write(name: str) -> Callable[[apsw.Connection], object]:
    """Return the work that keeps an agent and gives a number."""
    agent = Agent(name=name, system_prompt=name * 700)

    def work(db: apsw.Connection) -> object:
        queries.numbers(db, TENANT, "run", [name])
        return queries.create(db, TENANT, agent, 0)

    return work


async def live(disk: FaultyDisk, seed: int) -> Life:
    """Write until the fault, after it, and when the disk was mended."""
    seconds = iter(range(10_000))

    def connect() -> apsw.Connection:
        return checks.connect_to_write(PATH, "FULL", connect=disk.connect)

    db = opened(disk)
    disk.phase = "work"
    thread = WriteThread(db, PATH, connect, lambda: next(seconds))
    told: list[str] = []
    unknown: list[str] = []
    for number in range(2 * WRITES):
        disk.mended = number >= WRITES
        name = f"agent {number}"
        try:
            await thread.run(write(name))
            told.append(name)
        except Unavailable:
            assert not disk.mended or number == WRITES, "it does not go on"
            unknown.append(name)
    found = disk.after_loss(seed)
    disk.phase = "close"
    await asyncio.to_thread(thread.stop)
    return Life(told, unknown, found)


def kept(disk: Disk) -> set[str]:
    """Open what a disk holds as the next process does; return what is there."""
    db = opened(disk)
    try:
        assert db.pragma("integrity_check") == "ok"
        found = queries.entries(
            db, TENANT, Agent, of=None, after=None, limit=None, newest_first=False, archived=True
        )
        assert len({one.id for one in found}) == len(found)
        for one in found:
            [number] = queries.numbers(db, TENANT, "run", [one.name])
            assert queries.named(db, TENANT, "run", number) == one.name
        return {one.name for one in found}
    finally:
        db.close()


@pytest.fixture(autouse=True)
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have checkpoints soon."""
    monkeypatch.setattr(write_thread, "CHECKPOINT_PAGES", CHECKPOINT_PAGES)


async def planned() -> list[Fault]:
    """Return every fault of the writes, from an undisturbed run."""
    disk = FaultyDisk()
    life = await live(disk, 0)
    assert (len(life.told), life.unknown) == (2 * WRITES, [])
    return [
        Fault(at, error, lasting)
        for at, (phase, what) in enumerate(disk.asked, 1)
        if phase == "work"
        for error in ERRORS[what]
        for lasting in (("once", "for good") if what not in ("read", "unlink") else ("once",))
    ]


@pytest.mark.parametrize("part", range(PARTS))
async def test_what_was_told_is_kept_and_it_goes_on_when_the_disk_is_mended(part: int) -> None:
    """Nobody is told of what is not durable, at whatever operation the disk fails, and however."""
    faults = await planned()
    assert {fault.error for fault in faults} == {"io", "full", "short", "dropped"}
    struck = 0
    for fault in faults[part::PARTS]:
        disk = FaultyDisk(fault)
        life = await live(disk, fault.at)
        assert disk.struck or not disk.asked[fault.at :], fault
        struck += bool(life.unknown)
        told, everything = set(life.told), {*life.told, *life.unknown}
        assert told <= kept(life.at_loss) <= everything, f"{fault}: lost with the power"
        assert told <= kept(disk) <= everything, f"{fault}: lost"
    assert struck > len(faults) / PARTS / 4


def shrug(self: WriteThread, error: BaseException) -> None:
    """Take an error of the disk for a warning."""
    with suppress(apsw.Error):
        self._db.execute("ROLLBACK")


async def test_a_writer_that_tells_before_it_is_durable_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge above can say no."""
    faults = await planned()
    monkeypatch.setattr(WriteThread, "_fail", shrug)
    lost = 0
    for fault in [one for one in faults if one.error == "full"][:10]:
        disk = FaultyDisk(fault)
        life = await live(disk, fault.at)
        lost += not set(life.told) <= kept(disk)
    assert lost
