"""Stores x troubles: real nodes, a real store, and everything that can come between them.

`python -m perdure.testing.nodes.matrix` runs every cell that can run here and says what could not;
`--store`, `--trouble` and `--seed` choose, `--break MUTANT` must turn a cell red, `--show` shows
what the nodes said of a bad cell. `--filter` parts nodes and stores by the kernel's packet filter,
in a network namespace, instead of by a proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from perdure.testing.ledger import running_ledger
from perdure.testing.nodes.backends import BACKENDS, Backend, SqliteBackend, backend
from perdure.testing.nodes.netfilter import Filtered, is_private, run_in_private_network
from perdure.testing.nodes.nursery import Nursery
from perdure.testing.nodes.proxy import Proxy
from perdure.testing.nodes.scene import END_SECONDS_MAX, Cell, Scene
from perdure.testing.nodes.troubles import ALL, STALL_LEASES, Trouble
from perdure.testing.servers import ServerMissing
from perdure.testing.witness import Store

AGAIN = "python -m perdure.testing.nodes.matrix"
ERRANDS = 36
WORK_MS = 30
BROKEN_SECONDS_MAX = 12.0
"""How long nodes that are broken on purpose may take: nobody has to wait for them."""
PATIENCE_SECONDS = 3.0
"""When a client asks again for what the store may have forgotten."""
LOG_CHARS_MAX = 6_000


def errands(count: int = ERRANDS) -> tuple[str, ...]:
    """Return the names of the errands."""
    return tuple(f"e{number}" for number in range(count))


async def undisturbed(folder: Path, ledger: Path, nursery: Nursery, count: int = ERRANDS) -> Store:
    """Run the errands on one node that nothing troubles: what all others are held against."""
    async with Scene(SqliteBackend(folder), ledger, nursery, errands(count), work_ms=0) as scene:
        if await scene.ended() is None:
            raise SystemExit(f"the undisturbed run did not end: {said(scene.folder)}")
        await scene.drain()
        return await scene.store()


async def run_cell(
    shared: Backend,
    trouble: Trouble,
    ledger: Path,
    nursery: Nursery,
    quiet: Store,
    *,
    seed: int = 1,
    mutant: str = "",
    **life: Any,
) -> Cell:
    """Run the errands on several nodes in a trouble, and judge what came of it."""
    began = time.monotonic()
    if trouble.followed:
        await asyncio.to_thread(shared.follow)
    scene = Scene(
        shared,
        ledger,
        nursery,
        sorted({name.rpartition("/")[2] for name in quiet}),
        seed=seed,
        speeds=trouble.speeds,
        false_clocks=trouble.false_clocks,
        network=Filtered if is_private() else Proxy,
        **{
            "work_ms": WORK_MS,
            "mutant": mutant,
            "bus": dict(trouble.bus),
            "patience_seconds": PATIENCE_SECONDS if trouble.forgets else None,
            "stall_ms": int(1_000 * STALL_LEASES),
            **life,
        },
    )
    async with scene:
        try:
            await trouble.play(scene)
        finally:
            scene.heal()
        recovery = await scene.ended(
            BROKEN_SECONDS_MAX if mutant else END_SECONDS_MAX, forgets=trouble.forgets
        )
        if recovery is None:
            await scene.tell()
        stuck = await scene.drain()
        found = await scene.audit(quiet, forgets=trouble.forgets, stuck=stuck)
        violations = found.violations()
        if recovery is None and not violations:
            violations.append("runs did not end in time")
        if scene.gave_up and not trouble.forgets:
            violations.append(f"{scene.gave_up} nodes gave up a store that came back")
        return Cell(
            store=shared.name,
            trouble=trouble.name,
            runs=len(quiet),
            violations=tuple(violations),
            kills=scene.kills,
            restarts=scene.restarts,
            gave_up=scene.gave_up,
            claims=found.counts.claims,
            fenced=found.counts.fenced,
            in_doubt=found.counts.in_doubt,
            recovery_seconds=recovery if recovery is not None else float("inf"),
            seconds=time.monotonic() - began,
            evidence=said(scene.folder) if violations else "",
        )


def said(folder: Path) -> str:
    """Return the ends of what the nodes said."""
    return "\n".join(
        f"--- {file.name}\n{file.read_text(errors='replace')[-LOG_CHARS_MAX:]}"
        for file in sorted(folder.glob("*.log"))
    )


async def run_matrix(
    stores: Iterable[str] = BACKENDS,
    troubles: Iterable[str] = ALL,
    *,
    seed: int = 1,
    mutant: str = "",
    count: int = ERRANDS,
    say: bool = True,
) -> tuple[list[Cell], list[str]]:
    """Run the cells; return them, and what could not run and why."""
    cells: list[Cell] = []
    missing: list[str] = []
    wanted = [ALL[name] for name in troubles]
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(running_ledger())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-quiet-"))
        nursery = await stack.enter_async_context(Nursery())
        quiet = await undisturbed(Path(folder), ledger, nursery, count)
        for name in stores:
            try:
                async with backend(name) as shared:
                    for trouble in (one for one in wanted if name in one.stores):
                        try:
                            cell = await run_cell(
                                shared, trouble, ledger, nursery, quiet, seed=seed, mutant=mutant
                            )
                        except ServerMissing as error:
                            missing.append(f"{trouble.name}: {error}")
                            continue
                        cells.append(cell)
                        if say:
                            sys.stdout.write(line_of(cell) + "\n")
                            sys.stdout.flush()
            except ServerMissing as error:
                missing.append(f"{name}: {error}")
    return cells, missing


def line_of(cell: Cell) -> str:
    """Return a cell as a line of text."""
    verdict = "ok" if not cell.violations else "; ".join(cell.violations)
    return (
        f"{cell.store:9} {cell.trouble:13} {cell.runs} runs, {cell.kills} kills, "
        f"{cell.gave_up} gave up, {cell.claims} claims, {cell.fenced} fenced, "
        f"{cell.in_doubt} in doubt, recovered in {cell.recovery_seconds:.1f} s, "
        f"{cell.seconds:.1f} s: {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run cells; the exit code is 0 only if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="append", choices=[*BACKENDS])
    parser.add_argument("--trouble", action="append", choices=[*ALL])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--errands", type=int, default=ERRANDS)
    parser.add_argument("--break", dest="mutant", default="", metavar="MUTANT")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--filter", action="store_true")
    options = parser.parse_args(arguments)
    if options.filter and not is_private():
        return run_in_private_network(__spec__.name, sys.argv[1:])
    cells, missing = asyncio.run(
        run_matrix(
            options.store or BACKENDS,
            options.trouble or ALL,
            seed=options.seed,
            mutant=options.mutant,
            count=options.errands,
        )
    )
    for one in missing:
        sys.stdout.write(f"NOT RUN  {one}\n")
    bad = [cell for cell in cells if cell.violations]
    for cell in bad:
        sys.stdout.write(f"BAD  {cell.store} {cell.trouble}\n")
        if options.show:
            sys.stdout.write(cell.evidence + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
