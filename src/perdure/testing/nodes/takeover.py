"""How long it takes until another node goes on: after a death, and at a drain.

The times are those of the traces: from the signal to the claim of another node, for each session
that the node had at that moment.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from perdure.runtime.settings import CLUSTERED
from perdure.testing.nodes.backends import Backend
from perdure.testing.nodes.nursery import Nursery
from perdure.testing.nodes.recorder import Trace, read_traces
from perdure.testing.nodes.scene import Scene

LEASE_MS = CLUSTERED.lease_ms
SESSIONS_PER_NODE = 40
THINK_MS = 15_000
"""So long that every session is in the middle of something when the signal comes, also where the
other node is late. Nobody waits for it."""
BEGUN_SECONDS_MAX = 20.0
POLL_SECONDS = 0.2
DEATH_SECONDS_MAX = LEASE_MS / 1_000 + 2
DRAIN_SECONDS_MAX = 1.0
WAIT_SECONDS_MAX = LEASE_MS / 1_000 * 3


class Takeover(NamedTuple):
    """Times until other nodes had claimed what one had, in seconds."""

    store: str
    sessions: int
    death_p50: float
    death_p99: float
    drain_p50: float
    drain_p99: float
    wrong: tuple[str, ...]


async def measure(shared: Backend, ledger: Path, nursery: Nursery) -> Takeover:
    """Kill a node in the middle of its work, and drain another one."""
    deaths = await _times(shared, ledger, nursery, signal.SIGKILL)
    drains = await _times(shared, ledger, nursery, signal.SIGTERM)
    wrong = []
    if not deaths or not drains:
        wrong.append(f"{shared.name}: no session was taken over")
        deaths, drains = deaths or [0.0], drains or [0.0]
    if _at(deaths, 0.99) > DEATH_SECONDS_MAX:
        wrong.append(
            f"{shared.name}: after a death a session waited {_at(deaths, 0.99):.1f} s, more than "
            f"{DEATH_SECONDS_MAX:.0f} s"
        )
    if _at(drains, 0.99) > DRAIN_SECONDS_MAX:
        wrong.append(
            f"{shared.name}: at a drain a session waited {_at(drains, 0.99):.2f} s, more than "
            f"{DRAIN_SECONDS_MAX:.0f} s"
        )
    return Takeover(
        store=shared.name,
        sessions=len(deaths) + len(drains),
        death_p50=_at(deaths, 0.5),
        death_p99=_at(deaths, 0.99),
        drain_p50=_at(drains, 0.5),
        drain_p99=_at(drains, 0.99),
        wrong=tuple(wrong),
    )


async def _times(
    shared: Backend, ledger: Path, nursery: Nursery, number: signal.Signals
) -> list[float]:
    """Return how long each session of a node waited after a signal; endless for those that did."""
    errands = [f"t{n}" for n in range(2 * SESSIONS_PER_NODE)]
    async with Scene(
        shared,
        ledger,
        nursery,
        errands,
        nodes=2,
        lease_ms=LEASE_MS,
        scan_interval_ms=CLUSTERED.scan_interval_ms,
        prefer_ms=CLUSTERED.prefer_ms,
        at_once=SESSIONS_PER_NODE,
        think_ms=THINK_MS,
        work_ms=1,
    ) as scene:
        await _all_begun(scene)
        member = scene.members["n0"]
        # It stays away: whoever is started again would take part of its work back.
        scene.leave_alone("n0")
        sent = time.monotonic()
        member.send(number)
        while True:
            await asyncio.sleep(POLL_SECONDS)
            times = taken_over(read_traces(scene.folder), "n0", sent)
            if float("inf") not in times or time.monotonic() > sent + WAIT_SECONDS_MAX:
                return times


async def _all_begun(scene: Scene) -> None:
    """Wait until each node has claimed all that it was given."""
    until = time.monotonic() + BEGUN_SECONDS_MAX
    while time.monotonic() < until:
        claims = Counter(
            trace.line["node"]
            for trace in read_traces(scene.folder)
            if trace.line["what"] == "claimed"
        )
        if min(claims["n0"], claims["n1"]) >= SESSIONS_PER_NODE:
            return
        await asyncio.sleep(POLL_SECONDS)


def taken_over(traces: Iterable[Trace], victim: str, sent: float) -> list[float]:
    """Return, for each session that a node had at a time, when another one claimed it, in order."""
    lines = sorted((trace.line for trace in traces), key=lambda line: line["at"])
    had: set[str] = set()
    claimed: dict[str, float] = {}
    for line in lines:
        session = line.get("session", "")
        if line["at"] <= sent and line["node"] == victim:
            if line["what"] == "claimed":
                had.add(session)
            elif line["what"] == "released":
                had.discard(session)
        elif line["what"] == "claimed" and line["node"] != victim and line["at"] > sent:
            claimed.setdefault(session, line["at"] - sent)
    return sorted(claimed.get(session, float("inf")) for session in had)


def _at(times: list[float], part: float) -> float:
    return times[min(len(times) - 1, int(len(times) * part))]
