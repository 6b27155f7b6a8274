"""The stores of many nodes: each against the floor of its server, PostgreSQL also against peers.

Every case gets an empty database of a server that is started for all of them, so that ratios are
taken side by side. Absurd is measured where BENCH_ABSURD_SQL names its schema, which no package
brings.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import machine, report
from bench.environments import NotInstalled, python_for
from bench.measure import Failed, Figures, measure
from bench.report import Target
from perdure.testing.servers import ServerMissing
from perdure.testing.servers.nats import NatsServer
from perdure.testing.servers.postgres import PostgresServer
from perdure.testing.servers.redis import RedisServer

Tell = Callable[[str], None]
NewStore = Callable[[], str]
PINS = Path(__file__).parent / "peers"
WATCHED = ("--concurrency", "1000", "--seconds", "3")
WATCHED_ALONE = ("--concurrency", "1", "--runs", "40")


class Case(NamedTuple):
    """One contestant on one store; `pins` names the environment of a peer."""

    store: str
    contestant: str
    module: str
    arguments: tuple[str, ...] = WATCHED
    pins: str = ""
    environment: tuple[tuple[str, str], ...] = ()


CASES = (
    Case("PostgreSQL", "floor", "bench.floor_postgres"),
    Case("PostgreSQL", "perdure", "bench.runtime"),
    Case("PostgreSQL", "two nodes", "bench.two_nodes"),
    Case("PostgreSQL", "DBOS", "bench.peers.dbos", pins="dbos"),
    Case("PostgreSQL", "Absurd", "bench.peers.absurd", pins="absurd"),
    Case("PostgreSQL", "floor at 1", "bench.floor_postgres", WATCHED_ALONE),
    Case("PostgreSQL", "perdure at 1", "bench.runtime", WATCHED_ALONE),
    Case("Redis", "floor", "bench.floor_redis"),
    Case("Redis", "perdure", "bench.runtime"),
    Case("NATS", "floor", "bench.floor_nats"),
    Case("NATS", "perdure", "bench.runtime"),
)
WANTED = (
    ("PostgreSQL", "perdure", "floor", 0.5),
    ("PostgreSQL", "two nodes", "perdure", 0.9),
    ("PostgreSQL", "perdure", "DBOS", 20),
    ("PostgreSQL", "perdure", "Absurd", 4),
    ("PostgreSQL", "perdure at 1", "floor at 1", None),
    ("Redis", "perdure", "floor", 0.4),
    ("NATS", "perdure", "floor", 0.4),
)
SAID = (
    (
        "- PostgreSQL as it is by default (fsync, synchronous_commit on), Redis with "
        "appendfsync=always, NATS with file storage; each on this machine, with the contestants"
    ),
    (
        "- the floors: the payloads alone; PostgreSQL by one statement for whatever waits "
        "(bench/floor_postgres.py), Redis in pipelines (bench/floor_redis.py), NATS by publishes "
        "that are all under way at once (bench/floor_nats.py)"
    ),
)


@contextmanager
def servers(missing: dict[str, str]) -> Iterator[Mapping[str, NewStore]]:
    """Start every server that is there; give what makes an empty store on each."""
    with ExitStack() as stack:
        found: dict[str, NewStore] = {}
        try:
            postgres = PostgresServer.start()
            stack.callback(postgres.stop)
            found["PostgreSQL"] = postgres.fresh_database
        except ServerMissing as why:
            missing["PostgreSQL"] = str(why)
        try:
            RedisServer.start(appendonly="yes", appendfsync="always").stop()
            found["Redis"] = lambda: _fresh(stack, RedisServer, "appendonly", "appendfsync")
        except ServerMissing as why:
            missing["Redis"] = str(why)
        try:
            NatsServer.start().stop()
            found["NATS"] = lambda: _fresh(stack, NatsServer)
        except ServerMissing as why:
            missing["NATS"] = str(why)
        yield found


def _fresh(stack: ExitStack, kind: type[RedisServer | NatsServer], *settings: str) -> str:
    """Return the URL of a server that nobody has used."""
    values = {"appendonly": "yes", "appendfsync": "always"}
    server = kind.start(**{name: values[name] for name in settings})
    stack.callback(server.stop)
    return server.url


def run(repetitions: int, peers: bool, command: str, tell: Tell) -> None:
    """Measure every case once in each repetition; write their section."""
    began, described = time.monotonic(), machine.described()
    missing: dict[str, str] = {}
    found: dict[tuple[str, str], dict[int, Figures]] = {}
    with servers(missing) as stores:
        pythons = _pythons(peers, missing)
        for repetition in range(repetitions):
            for case in CASES:
                if case.store not in stores or case.contestant not in pythons:
                    continue
                tell(f"{repetition + 1}/{repetitions} {case.contestant} on {case.store}")
                environment = {**dict(case.environment), "BENCH_STORE": stores[case.store]()}
                try:
                    figures = measure(
                        case.module,
                        case.arguments,
                        python=pythons[case.contestant],
                        environment=environment,
                    )
                except Failed as why:
                    if not case.pins:
                        raise
                    missing[case.contestant] = str(why)
                    continue
                found.setdefault((case.store, case.contestant), {})[repetition] = figures
    report.write("Stores of many nodes", _section(found, missing, described, command, began))


def _pythons(peers: bool, missing: dict[str, str]) -> dict[str, Path]:
    pythons = {case.contestant: Path(sys.executable) for case in CASES if not case.pins}
    for case in CASES if peers else ():
        if not case.pins:
            continue
        if case.pins == "absurd" and not os.environ.get("BENCH_ABSURD_SQL"):
            missing[case.contestant] = "BENCH_ABSURD_SQL names no file"
            continue
        try:
            pythons[case.contestant] = python_for(PINS / f"{case.pins}.txt")
        except NotInstalled as why:
            missing[case.contestant] = str(why)
    return pythons


def _section(
    found: Mapping[tuple[str, str], Mapping[int, Figures]],
    missing: Mapping[str, str],
    described: list[str],
    command: str,
    began: float,
) -> list[str]:
    rows = []
    for store, ours, theirs, least in WANTED:
        one, other = found.get((store, ours), {}), found.get((store, theirs), {})
        rate = "calls_per_second"
        ratios = [one[n][rate] / other[n][rate] for n in one if n in other]
        rows.append(Target(f"{store}: calls/s of {ours} to {theirs}", ratios, least=least))
    lines = ["| store | contestant | calls/s | CPU of a call, us | version |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for (store, contestant), by_repetition in found.items():
        figures = [*by_repetition.values()]
        rates = report.spread([one["calls_per_second"] for one in figures], 0)
        cpu = report.spread([one["cpu_us_per_call"] for one in figures], 0)
        lines.append(f"| {store} | {contestant} | {rates} | {cpu} | {figures[0]['version']} |")
    repetitions = max((len(one) for one in found.values()), default=0)
    return [
        f"`{command}`, {repetitions} repetitions in {time.monotonic() - began:.0f} s",
        "",
        *described,
        *report.WORKLOAD[:1],
        *SAID,
        *(f"- not measured: {what}: {why}" for what, why in missing.items()),
        "",
        *report.targets(rows),
        "",
        "Absolute, this machine on this day, at 1000 clients unless it says otherwise:",
        "",
        *lines,
    ]
