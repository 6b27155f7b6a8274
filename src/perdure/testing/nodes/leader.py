"""Frozen leaders on a real store: many rounds, and broken drivers that the rounds must find.

`python -m perdure.testing.nodes.leader --store postgres --rounds 1000` plays rounds, with real
clients of a real server behind proxies; `--break MUTANT` must find the mutant, `--stops N` stops
real processes instead.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from perdure.adapters.clock import SystemClock
from perdure.adapters.stores.memory import MemoryStore
from perdure.testing.mutants import broken
from perdure.testing.nodes.backends import BACKENDS, Backend, backend
from perdure.testing.nodes.contest import play_contest
from perdure.testing.nodes.frozen import Frozen, Hand, play_rounds
from perdure.testing.nodes.proxy import Proxy

ROUNDS = 1_000
ROUNDS_TO_CATCH_MAX = 60
PAIRS = 4
LOCAL_PAIRS = 8


async def play_frozen(
    shared: Backend, rounds: int = ROUNDS, *, seed: int = 1, mutant: str = ""
) -> Frozen:
    """Play rounds on a store that is running; with a mutant, until the first that is wrong."""
    async with AsyncExitStack() as stack:
        if mutant:
            stack.enter_context(broken(mutant))
        space = await asyncio.to_thread(shared.fresh)
        pairs = await _pairs(shared, space, stack)
        return await play_rounds(shared.name, pairs, rounds, seed=seed, stop_at_wrong=bool(mutant))


async def play_frozen_in_memory(rounds: int = ROUNDS, *, seed: int = 1, mutant: str = "") -> Frozen:
    """Play rounds on the store of one process."""
    async with AsyncExitStack() as stack:
        if mutant:
            stack.enter_context(broken(mutant))
        hand = Hand(MemoryStore(SystemClock()))
        pairs = [(hand, hand)] * LOCAL_PAIRS
        return await play_rounds("memory", pairs, rounds, seed=seed, stop_at_wrong=bool(mutant))


async def _pairs(shared: Backend, space: str, stack: AsyncExitStack) -> list[tuple[Hand, Hand]]:
    if not shared.shared:
        alone = await _opened(shared, space, stack)
        return [(alone, alone)] * LOCAL_PAIRS
    return [
        (await _opened(shared, space, stack), await _opened(shared, space, stack))
        for _ in range(PAIRS)
    ]


async def _opened(shared: Backend, space: str, stack: AsyncExitStack) -> Hand:
    proxies = [await stack.enter_async_context(Proxy(*address)) for address in shared.addresses]
    store: Any = await shared.open(space, [(one.host, one.port) for one in proxies])
    stack.push_async_callback(store.close)
    return Hand(store, tuple(proxies))


def line_of(found: Frozen) -> str:
    """Return what came of rounds as a line of text."""
    points = ", ".join(f"{name} {count}" for name, count in sorted(found.by_point.items()))
    return (
        f"{found.store:9} {found.rounds} rounds, {found.refused:,} stale operations refused, "
        f"{found.in_doubt} in doubt, {found.wrong_rounds} rounds wrong, {found.seconds:.1f} s "
        f"({points})"
    )


async def _run(options: argparse.Namespace) -> int:
    bad = 0
    for name in options.store or ["memory", *BACKENDS]:
        if name == "memory":
            found = await play_frozen_in_memory(
                options.rounds, seed=options.seed, mutant=options.mutant
            )
        else:
            async with backend(name) as shared:
                if options.stops:
                    contested = await play_contest(
                        shared, options.stops, seed=options.seed, mutant=options.mutant
                    )
                    sys.stdout.write(f"{contested}\n")
                    bad += len(contested.wrong)
                    continue
                found = await play_frozen(
                    shared, options.rounds, seed=options.seed, mutant=options.mutant
                )
        sys.stdout.write(line_of(found) + "\n")
        sys.stdout.writelines(f"BAD  {line}\n" for line in found.wrong[:10])
        bad += found.wrong_rounds
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Play rounds; the exit code is 0 only if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="append", choices=["memory", *BACKENDS])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--break", dest="mutant", default="", metavar="MUTANT")
    return asyncio.run(_run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
