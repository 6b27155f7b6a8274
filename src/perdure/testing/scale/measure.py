"""What a store's server spends on each request: `python -m perdure.testing.scale.measure postgres`.

It starts a server of its own and asks it through the driver. What counts
is the CPU time of the server's processes, and not how long an answer took: the same machine runs
the driver, and in a large cluster many nodes keep the server busy. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from perdure.adapters.clock import SystemClock
from perdure.bootstrap import open_store
from perdure.core.codec import seal
from perdure.core.errors import StoreError
from perdure.core.events import MessageReceived
from perdure.core.ids import SessionId
from perdure.ports.session_store import Claimed, InboxEntry, SessionStore, StepCommit
from perdure.testing.scale.store import Costs
from perdure.testing.servers.nats import NatsServer
from perdure.testing.servers.postgres import PostgresServer
from perdure.testing.servers.redis import RedisServer

SERVERS: dict[str, Callable[[], Any]] = {
    "postgres": lambda: PostgresServer.start(settings={"fsync": "on", "synchronous_commit": "on"}),
    "redis": RedisServer.start,
    "nats": NatsServer.start,
}
SESSIONS = 2_000
BATCH = 256


class Spent(NamedTuple):
    """What a kind of request costs the server, and how many were answered in a second."""

    cpu_us: float
    asked_s: float


async def measure(
    store: SessionStore, cpu_us: Callable[[], int], together: int = 1
) -> dict[str, Spent]:
    """Ask for everything that a cluster asks for, and return what it cost.

    One request after the other is how it costs most: drivers write together what waits.
    """
    names = [SessionId("tenant", "agent", f"{number:06d}") for number in range(SESSIONS)]
    tokens: dict[SessionId, Claimed] = {}
    spent = {}

    async def each(what: str, ask: Callable[[int], Awaitable[object]], count: int) -> None:
        before_us, begun_s = cpu_us(), time.monotonic()
        for first in range(0, count, together):
            await asyncio.gather(*map(ask, range(first, min(count, first + together))))
        passed_s = time.monotonic() - begun_s
        spent[what] = Spent((cpu_us() - before_us) / count, count / passed_s)

    async def claim(number: int) -> None:
        claimed = await store.claim(names[number], "one", f"nonce-{number}", None, 10)
        assert isinstance(claimed, Claimed)
        tokens[names[number]] = claimed

    async def refused(number: int) -> None:
        assert not isinstance(await store.claim(names[number], "two", "n", None, 10), Claimed)

    now = int(time.time() * 1000) + 60_000
    await each(
        "accept",
        lambda number: store.accept(InboxEntry(f"entry-{number}", names[number], b"{}", now)),
        SESSIONS,
    )
    await each("renew", lambda number: store.renew(f"node-{number % 200}", 5_000), 1_000)
    await each("scan of 1", lambda number: store.due(now, 1, ["agent"], 10), 500)
    await each(f"scan of {BATCH}", lambda number: store.due(now, BATCH, ["agent"], 10), 500)
    assert await store.renew("one", 600_000) is not None
    await each("claim", claim, SESSIONS)
    await each("refusal", refused, SESSIONS)
    await each("commit", lambda number: _committed(store, tokens[names[number]]), SESSIONS)
    await each("unread", lambda number: store.unread("two", BATCH), 500)
    await each(
        "release",
        lambda number: store.release(names[number], tokens[names[number]].token),
        SESSIONS,
    )
    return spent


def _committed(store: SessionStore, claimed: Claimed) -> asyncio.Future[None]:
    """Commit one event of a kilobyte, as a call's outcome is."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    loaded = claimed.loaded
    event = MessageReceived(at=1, message="m", content="x" * 1_000)
    records = tuple(seal(loaded.head, loaded.version, (event,)))

    def settle(error: StoreError | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    store.commit(
        StepCommit(loaded.session, claimed.token, loaded.version, records, postponed=1), settle
    )
    return done


def costs_of(spent: dict[str, Spent]) -> Costs:
    """Return what was measured as the costs of a store of this machine."""
    row_us = (spent[f"scan of {BATCH}"].cpu_us - spent["scan of 1"].cpu_us) / (BATCH - 1)
    return Costs(
        lanes=os.cpu_count() or 1,
        renew_us=round(spent["renew"].cpu_us),
        scan_us=round(spent["scan of 1"].cpu_us),
        scan_row_us=round(max(0.0, row_us), 2),
        unread_us=round(spent["unread"].cpu_us),
        claim_us=round(spent["claim"].cpu_us),
        refusal_us=round(spent["refusal"].cpu_us),
        release_us=round(spent["release"].cpu_us),
    )


def cpu_us_of(pid: int) -> int:
    """Return the CPU time that a process and its children have spent, in microseconds."""
    spent_ns = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            if pid in (int(entry.parent.name), parent):
                for thread in entry.parent.glob("task/*/schedstat"):
                    spent_ns += int(thread.read_text().split()[0])
    return spent_ns // 1000


async def _measure(kind: str, together: int) -> dict[str, Spent]:
    server = SERVERS[kind]()
    try:
        store = await open_store(server.url, SystemClock())
        try:
            return await measure(store, lambda: cpu_us_of(server.pid), together)
        finally:
            await store.close()
    finally:
        server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a store, and say what it costs."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.scale.measure")
    parser.add_argument("store", choices=[*SERVERS])
    parser.add_argument("--together", type=int, default=1, help="requests at a time")
    parser.add_argument("--json", type=Path, help="write the costs to this file, for --costs")
    options = parser.parse_args(arguments)
    spent = asyncio.run(_measure(options.store, options.together))
    for what, (cpu_us, asked_s) in spent.items():
        print(f"{what:12s} {cpu_us:7.0f} us of the server's CPU  {asked_s:7.0f}/s")
    costs = costs_of(spent)
    print(costs)
    if options.json:
        options.json.write_bytes(msgspec.json.encode(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
