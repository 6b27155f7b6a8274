"""docs/proof.md, and the figures that README.md repeats."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

from perdure.bootstrap import sqlite_version
from perdure.testing import crash
from perdure.testing.budgets import Found as Paid
from perdure.testing.convict import Verdict
from perdure.testing.crash import Crashes
from perdure.testing.findings import Proof
from perdure.testing.governance import Found
from perdure.testing.judge import WRONG
from perdure.testing.mutants import MUTANTS
from perdure.testing.nodes.page import many_nodes
from perdure.testing.simulation import Summary
from perdure.testing.simulation.probes import PROBES

BEGIN, END = "<!-- figures of the proof -->", "<!-- end of the figures -->"
COMMAND = "make proof"


def figures(proof: Proof) -> str:
    """Return the table of the figures that README.md and docs/proof.md both show."""
    crashes, full, disk = proof.crashes, proof.power[0], proof.disk
    simulation, wrong = proof.simulation, proof.crashes.wrong
    caught = sum(one.caught for one in proof.mutants)
    nodes, paused = proof.nodes, sum(one.rounds for one in proof.nodes.frozen)
    return "\n".join(
        (
            BEGIN,
            "",
            *_table(
                ("real processes killed, of which while recovering",
                 f"{crashes.deaths:,}, {crashes.deaths_recovering:,}"),
                ("completed calls made again", wrong["re_executed_calls"]),
                ("effects that happened twice, that are missing",
                 f"{wrong['duplicate_effects']}, {wrong['missing_effects']}"),
                ("acknowledged operations lost", wrong["lost_acknowledged"]),
                ("runs that did not end, that ended differently",
                 f"{wrong['stuck_runs']}, {wrong['divergent_ends']}"),
                ("losses of power, after which something acknowledged was lost",
                 f"{full.cases:,}, {full.lost + full.corrupt}"),
                ("errors of the disk, after which something was wrong",
                 f"{disk.faults:,}, {len(disk.wrong)}"),
                ("simulated worlds, of which one broke a promise",
                 f"{simulation.seeds:,}, {simulation.failed_seeds}"),
                ("decisions of people on calls, after which one was made without leave",
                 f"{_decisions(proof.governance):,}, {len(proof.governance.wrong)}"),
                ("stores x troubles of several nodes, of which one broke a promise",
                 f"{len(nodes.cells)}, {sum(bool(one.violations) for one in nodes.cells)}"),
                ("leaders paused beyond their lease, after which something stale was accepted",
                 f"{paused:,}, {sum(one.wrong_rounds for one in nodes.frozen)}"),
                ("engines broken on purpose, found out", f"{len(proof.mutants)}, {caught}"),
            ),
            "",
            END,
        )
    )  # fmt: skip


def page(proof: Proof) -> str:
    """Return docs/proof.md."""
    return "\n".join(
        (
            "# Proof",
            "",
            f"Written by `{COMMAND}`; do not edit. {_machine()} It took {proof.seconds:,.0f} s.",
            "Every line that something was wrong would come with the command that shows it again.",
            "",
            figures(proof),
            "",
            *_crash_part(proof.crashes),
            *_disk_part(proof),
            *_simulation_part(proof.simulation),
            *_governance_part(proof.governance),
            *_budget_part(proof.budgets),
            *many_nodes(proof.nodes),
            *_mutant_part(proof.mutants),
        )
    )


def _crash_part(crashes: Crashes) -> Iterator[str]:
    yield from (
        "## Killed everywhere",
        "",
        "A real process over SQLite kills itself with SIGKILL at every fault point and at every",
        "step of its event loop, and in pairs, the second while it recovers; another process",
        "finishes. Models and tools are called inside the process, so that every message that is",
        "sent is one of the points. The far ends live in a ledger process that is never killed.",
        f"`{crash.AGAIN} POINT:N` shows one again.",
        "",
        *_table(
            ("fault points reached / known", f"{crashes.sites_reached} / {crashes.sites_known}"),
            ("steps of the event loop, each a point", crashes.steps),
            ("scenarios", f"{crashes.scenarios:,}"),
            ("process deaths", f"{crashes.deaths:,}"),
            ("of which while recovering", f"{crashes.deaths_recovering:,}"),
            *((text, crashes.wrong[name]) for name, text in WRONG.items()),
            ("model calls asked / recorded; the others were paid for twice",
             f"{crashes.models_asked:,} / {crashes.models_recorded:,}"),
            ("slowest recovery", f"{crashes.slowest_recovery_seconds:.1f} s"),
            ("wall time", f"{crashes.seconds:.0f} s"),
        ),
        "",
        "| effect | sent | took effect | twice | missing | outcome unknown, and shown |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{effect}` | {one.sent:,} | {one.took_effect:,} | {one.duplicates} "
            f"| {one.missing} | {one.unknown:,} |"
            for effect, one in crashes.by_effect.items()
        ),
        "",
        "A `read` has no effect; it may be sent again while its result is not recorded.",
        "",
    )  # fmt: skip


def _disk_part(proof: Proof) -> Iterator[str]:
    disk, stores = proof.disk, proof.stores
    yield from (
        "## Power, disks and stores",
        "",
        "The power is lost at every I/O operation of the store; what was not synced is kept,",
        "dropped or torn by seed. `NORMAL` and `OFF` are controls: they must lose something.",
        "",
        "| `synchronous` | cases | lost something acknowledged | corrupt |",
        "| --- | --- | --- | --- |",
        *(f"| {one.level} | {one.cases:,} | {one.lost} | {one.corrupt} |" for one in proof.power),
        "",
        *_table(
            ("errors of the disk (EIO, ENOSPC, short writes, failed syncs)", f"{disk.faults:,}"),
            ("at so many operations", disk.operations),
            ("after which something was wrong", len(disk.wrong)),
            (f"promises of the store port, kept by {' and '.join(stores.stores)}", stores.promises),
            ("promises broken", len(stores.broken)),
        ),
        "",
    )


def _simulation_part(found: Summary) -> Iterator[str]:
    reached = len(PROBES) - len(found.unreached)
    yield from (
        "## Simulated",
        "",
        "The real runtime in worlds of virtual time: several nodes, crashes, pauses, clocks that",
        "disagree. Every seed runs twice and must come to the same digest.",
        "",
        *_table(
            ("seeds", f"{found.seeds:,}"),
            ("virtual hours", f"{found.virtual_hours:,.0f}"),
            ("crashes, pauses, fences",
             f"{found.crashes:,}, {found.pauses:,}, {found.fences:,}"),
            ("events", f"{found.events:,}"),
            ("rare situations reached / named", f"{reached} / {len(PROBES)}"),
            ("digests that differ", found.determinism_mismatches),
            ("seeds that failed", found.failed_seeds),
            ("wall time", f"{found.wall_seconds:,.0f} s"),
        ),
        "",
    )  # fmt: skip


def _decisions(found: Found) -> int:
    return sum(found.counts[name] for name in DECISIONS) + sum(found.refused.values())


def _governance_part(found: Found) -> Iterator[str]:
    counts, refused = found.counts, found.refused
    yield from (
        "## Governed",
        "",
        "Stories on the pure core, by seed: rules that allow, deny, ask, fail and change; people",
        "who approve, deny, edit and pass on, twice, late, or on arguments that are others by now;",
        "workers that die in mid-call, keys that a far end forgets. A judge reads the events alone",
        "and knows the rules itself. `python -m perdure.testing.governance` does it again.",
        "",
        *_table(
            ("stories", f"{found.stories:,}"),
            ("calls intended, denied",
             f"{counts['tool_call_intended']:,}, {counts['tool_call_denied']:,}"),
            ("approvals requested, given",
             f"{counts['approval_requested']:,}, {found.approvals:,}"),
            ("arguments edited, approvals passed on",
             f"{counts['arguments_edited']:,}, {counts['approval_reassigned']:,}"),
            ("decisions refused", ", ".join(f"{refused[one]:,} {one.replace('_', ' ')}"
                                            for one in sorted(refused))),
            ("calls in doubt, resolved later",
             f"{counts['tool_call_unknown']:,}, {counts['tool_call_resolved']:,}"),
            ("calls made without leave, or not as approved", len(found.wrong)),
        ),
        "",
    )  # fmt: skip


def _budget_part(paid: Paid) -> Iterator[str]:
    counts = paid.counts
    yield from (
        "## Within the budget",
        "",
        "Stories on the pure core, by seed: models that reply, refuse, time out, lose their node",
        "and are asked again; people who give more, or no more; runs cancelled at any moment. A",
        "bank counts a token for every byte that was asked and said, and bills what it likes",
        "of calls that nobody learned the outcome of.",
        "`python -m perdure.testing.budgets` does it again.",
        "",
        *_table(
            ("stories", f"{paid.stories:,}"),
            ("calls of models reserved",
             f"{counts['model_call_intended'] + counts['compaction_intended']:,}"),
            ("failed, asked again after a loss",
             f"{counts['model_call_failed']:,}, {counts['model_call_resent']:,}"),
            ("budgets exceeded, raised",
             f"{counts['budget_exceeded']:,}, {counts['budget_raised']:,}"),
            ("times more was billed than given, or than the purse knew, or a reservation was left",
             len(paid.wrong)),
        ),
        "",
    )  # fmt: skip


DECISIONS = ("approval_given", "approval_reassigned", "arguments_edited")


def _mutant_part(verdicts: tuple[Verdict, ...]) -> Iterator[str]:
    times = sorted(one.seconds for one in verdicts)
    caught = sum(one.caught for one in verdicts)
    yield from (
        "## Broken on purpose",
        "",
        "A rig that has caught nothing proves nothing.",
        f"{caught} of {len(verdicts)} were caught, in {times[len(times) // 2]:.1f} s (median).",
        "`python -m perdure.testing.convict MUTANT` does it again, and",
        '`make test ARGS="-k MUTANT"` runs the test that catches it.',
        "",
        "| mutant | what it does | caught by | after |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{one.mutant}` | {MUTANTS[one.mutant].what} "
            f"| {RIG_NAMES[one.rig] if one.caught else '**nobody**'} | {one.seconds:.1f} s |"
            for one in verdicts
        ),
        "",
    )


RIG_NAMES = {
    "crash": "the crash rig",
    "store": "the suite of stores",
    "simulation": "the simulation",
    "core": "the rules themselves",
    "governance": "stories of rules and people",
    "budget": "stories of runs that have to pay",
    "leader": "the frozen leader",
    "matrix": "several nodes in trouble",
}


def _table(*rows: tuple[str, object]) -> list[str]:
    return [
        "| what | figure |",
        "| --- | --- |",
        *(f"| {what} | {count} |" for what, count in rows),
    ]


def _machine() -> str:
    versions = f"Python {platform.python_version()}, SQLite {sqlite_version()}"
    return f"{versions}, {platform.system()} on {os.cpu_count()} cores."


def marked(text: str) -> str:
    """Return the figures in a page, with their marks; empty if there are none."""
    _, begin, rest = text.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    return begin + inside + end if begin and end else ""
