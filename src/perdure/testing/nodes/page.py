"""What docs/proof.md says of many nodes."""

from __future__ import annotations

from collections.abc import Iterator

from perdure.testing.mutants import MUTANTS
from perdure.testing.nodes.evidence import Evidence, Hunt
from perdure.testing.nodes.scene import Cell
from perdure.testing.nodes.troubles import ALL


def many_nodes(found: Evidence) -> Iterator[str]:
    """Yield the lines of the chapter."""
    stores = list(dict.fromkeys(cell.store for cell in found.cells))
    cells = {(cell.store, cell.trouble): cell for cell in found.cells}
    yield from (
        "## Many nodes",
        "",
        "Real node processes share a real store, each behind a network of its own. Nodes are",
        "killed, stopped and given false clocks, networks are cut one way and both, servers are",
        "killed and frozen. An auditor folds every log afterwards and holds it against what the",
        "nodes noted, and what really happened. A cell says how many runs were judged, and how",
        "long the nodes took to their end once the trouble was over.",
        "`python -m perdure.testing.nodes.matrix --store STORE --trouble TROUBLE` runs one again.",
        "",
        f"| trouble | what is done | {' | '.join(stores)} |",
        f"| --- | --- |{' --- |' * len(stores)}",
        *(
            f"| {name} | {trouble.what} | "
            f"{' | '.join(_cell(cells.get((store, name))) for store in stores)} |"
            for name, trouble in ALL.items()
        ),
        "",
        *(f"Not run here: {one}" for one in found.missing),
        "",
        *_leaders(found),
        *_takeovers(found),
        *_hunts(found.hunts),
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.violations:
        return "**" + "; ".join(cell.violations) + "**"
    return f"{cell.runs} runs, {cell.recovery_seconds:.1f} s"


def _leaders(found: Evidence) -> Iterator[str]:
    yield from (
        "A leader is paused beyond its lease, wherever it is: with a claim, a commit, a renewal or",
        "a release under way, or their answers; another goes on; the first wakes and tries",
        "everything it had in mind.",
        "",
        "| store | rounds | stale refused | rounds wrong | processes stopped | events | wrong |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    contested = {one.store: one for one in found.contested}
    for one in found.frozen:
        stopped = contested.get(one.store)
        more = ("", "", "") if stopped is None else (
            f"{stopped.stops}", f"{stopped.events:,}", f"{len(stopped.wrong)}"
        )  # fmt: skip
        yield (
            f"| {one.store} | {one.rounds:,} | {one.refused:,} | {one.wrong_rounds} "
            f"| {' | '.join(more)} |"
        )
    yield ""


def _takeovers(found: Evidence) -> Iterator[str]:
    yield from (
        "How long a session waits for another node, with a lease of 5 s:",
        "",
        "| store | sessions | after a death: p50, p99 | at a drain: p50, p99 |",
        "| --- | --- | --- | --- |",
        *(
            f"| {one.store} | {one.sessions} | {one.death_p50:.1f} s, {one.death_p99:.1f} s "
            f"| {one.drain_p50:.2f} s, {one.drain_p99:.2f} s |"
            for one in found.takeovers
        ),
        "",
    )


def _hunts(hunts: tuple[Hunt, ...]) -> Iterator[str]:
    stores = list(dict.fromkeys(one.store for one in hunts))
    by_mutant: dict[str, dict[str, Hunt]] = {}
    for one in hunts:
        by_mutant.setdefault(one.mutant, {})[one.store] = one
    yield from (
        "Drivers and nodes that are broken on purpose, and after how many rounds, or seconds of a",
        "cell, it was found:",
        "",
        f"| mutant | what it does | {' | '.join(stores)} |",
        f"| --- | --- |{' --- |' * len(stores)}",
    )
    for name, by_store in by_mutant.items():
        said = [_hunt(by_store.get(store)) for store in stores]
        yield f"| `{name}` | {MUTANTS[name].what} | {' | '.join(said)} |"
    yield ""


def _hunt(one: Hunt | None) -> str:
    if one is None:
        return ""
    if not one.evidence:
        return "**nobody**"
    return f"round {one.rounds}" if one.rounds else f"{one.seconds:.0f} s"
