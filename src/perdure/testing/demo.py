"""The durability demonstration: an agent process is killed at its worst moments, and finishes.

`perdure demo durability` runs this module in a process of its own.
"""

from __future__ import annotations

import asyncio
import difflib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from perdure.cli.events import gist
from perdure.cli.output import Output, plain, short
from perdure.core.errors import PerdureError
from perdure.runtime.handles import RecordedEvent
from perdure.testing.durability import WORLD_FILE
from perdure.testing.judge import WRONG, Found, answer_in, judge
from perdure.testing.ledger import read_ledger, running_ledger
from perdure.testing.lives import Lives
from perdure.testing.mutants import find
from perdure.testing.witness import SESSION, Kill, Store, log_of, look

KILLS = (
    ("model.before:2", "in a model call"),
    ("user.measuring:2", "in the middle of a tool"),
    ("claim.after:1", "during recovery: claimed, nothing decided"),
    ("user.saved:1", "between an idempotent effect and its record"),
    ("user.published:1", "between a once-only effect and its record"),
    ("claim.after:1", "during that recovery, too"),
    ("user.mailed:1", "the same, and nobody can ask the far end"),
)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model")
@click.option("--break", "mutant")
@click.option("--keep", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
def main(directory: Path, model: str | None, mutant: str | None, keep: bool, as_json: bool) -> None:
    """Run the demonstration over DIRECTORY."""
    output = Output(as_json)
    try:
        code = asyncio.run(demonstrate(directory.resolve(), model, mutant, keep, output))
        if code == 0 and mutant is not None:
            code = _set_the_rig_upon(mutant, output)
        sys.exit(code)
    except PerdureError as error:
        click.echo(f"perdure: {plain(error)}", err=True)
        sys.exit(1)


def _set_the_rig_upon(mutant: str, output: Output) -> int:
    """Run the rig that must catch what seven kills did not show; return its exit code."""
    output.say(f"\nSeven kills do not show {mutant}. The rig that must:")
    command = [sys.executable, "-m", "perdure.testing.convict", mutant]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (finished.stdout or finished.stderr).strip().splitlines()[-1]
    output.record({"mutant": mutant, "caught": finished.returncode != 0, "by": said}, f"  {said}")
    return finished.returncode


async def demonstrate(
    directory: Path, model: str | None, mutant: str | None, keep: bool, output: Output
) -> int:
    """Run undisturbed, run with kills, compare; return the exit code."""
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    try:
        played = model or "a function that plays the model (--model asks a real one)"
        output.say(f"The agent surveys {directory}. Its model is {played}.\n")
        if mutant is not None:
            output.say(f"broken on purpose: {find(mutant).what}\n")
        with running_ledger() as ledger:
            Lives(work / "quiet.db", directory, work / "quiet", ledger, model).to_the_end()
            quiet = await look(work / "quiet.db")
            output.say(f"undisturbed   {len(log_of(quiet))} events, the reference\n")
            lives = Lives(work / "killed.db", directory, work / "killed", ledger, model, mutant)
            kills = await _kill_again_and_again(work, lives, output)
            store = await look(work / "killed.db")
        found = judge(read_ledger(work / "killed" / WORLD_FILE), kills, quiet, store)
        same = answer_in(quiet.get(str(SESSION))) == answer_in(store.get(str(SESSION)))
        if model is not None:
            # A real model need not say the same words twice.
            found = found._replace(divergent_ends=0)
        _show(output, log_of(quiet), log_of(store), kills, work / "killed")
        fields = {**found._asdict(), "good": found.good, "same_answer": same}
        output.record(
            {**fields, "seconds": round(time.monotonic() - began, 2)}, _verdict(found, same)
        )
        if keep:
            output.say(f"\nKept in {work}; try: perdure verify {work / 'killed.db'}")
        return 0 if found.good else 1
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


async def _kill_again_and_again(work: Path, lives: Lives, output: Output) -> list[Kill]:
    kills: list[Kill] = []
    try:
        for fault, why in KILLS:
            death = lives.until_killed(fault)
            if death is None:
                break
            store: Store = await look(work / "killed.db")
            heard = len(read_ledger(work / "killed" / WORLD_FILE))
            kills.append(Kill(death.pid, death.site, store, heard))
            durable = len(log_of(store))
            output.record(
                {"kill": len(kills), "pid": death.pid, "site": death.site, "durable": durable},
                f"SIGKILL {len(kills)}  pid {death.pid:<7} {why:<43} {durable:>2} events durable",
            )
        pid = lives.to_the_end()
    except PerdureError as error:
        output.say(f"last life     {plain(error)}")
        return kills
    output.say(f"last life     pid {pid:<8} ran to the end")
    return kills


def _show(
    output: Output,
    quiet: list[RecordedEvent],
    log: list[RecordedEvent],
    kills: list[Kill],
    out: Path,
) -> None:
    """Print both logs side by side, and the ledger of effects."""
    width = max(36, min(76, (shutil.get_terminal_size((150, 24)).columns - 6) // 2))
    output.say(f"\n{'undisturbed':<{width}}  |  killed {len(kills)} times (L = life)")
    output.say("-" * width + "--+--" + "-" * width)
    for left, right in _aligned(quiet, log):
        a = _cell(left, None, width) if left else ""
        b = _cell(right, _life(right, kills), width) if right else ""
        output.say(f"{a:<{width}}  |  {b}")
    output.say("\nthe ledger of effects, a process that was never killed:")
    for line in read_ledger(out / WORLD_FILE):
        if line["what"] == "effect":
            output.say(f"  {line['tool']:<12} key {line['key']}  by pid {line['pid']}")
    output.say("")


def _life(one: RecordedEvent, kills: list[Kill]) -> int:
    return 1 + sum(len(log_of(kill.store)) < one.seq for kill in kills)


def _cell(one: RecordedEvent, life: int | None, width: int) -> str:
    lead = f"L{life} " if life else ""
    return short(f"{lead}{one.seq:>3} {one.type} {gist(one.event)}", width)


def _aligned(
    quiet: list[RecordedEvent], log: list[RecordedEvent]
) -> list[tuple[RecordedEvent | None, RecordedEvent | None]]:
    def name(one: RecordedEvent) -> str:
        return f"{one.type} {getattr(one.event, 'call', '')}"

    matcher = difflib.SequenceMatcher(None, list(map(name, quiet)), list(map(name, log)), False)
    pairs: list[tuple[RecordedEvent | None, RecordedEvent | None]] = []
    for tag, a1, a2, b1, b2 in matcher.get_opcodes():
        if tag == "equal":
            pairs += zip(quiet[a1:a2], log[b1:b2], strict=True)
        else:
            pairs += [(one, None) for one in quiet[a1:a2]]
            pairs += [(None, one) for one in log[b1:b2]]
    return pairs


def _verdict(found: Found, same: bool) -> str:
    def line(wrong: int, text: str) -> str:
        return f"  {'FAIL' if wrong else 'ok  '}  {text}"

    counts = found._asdict()
    others = [name for name in WRONG if counts[name] and name not in (*SHOWN, *SAID_OTHERWISE)]
    ended = "did not complete" if found.stuck_runs else "completed"
    chain = "broken" if found.broken_logs else "whole"
    unknown = sum(count.unknown for count in found.by_effect.values())
    paid = found.models_asked - found.models_recorded
    lines = [
        line(found.stuck_runs, f"the run {ended} after {found.kills} SIGKILLs"),
        *(line(counts[name], f"{counts[name]} {WRONG[name]}") for name in (*SHOWN, *others)),
        line(found.broken_logs, f"the chain over {found.events} events is {chain}"),
        f"        {unknown} outcomes that nobody could know, shown as such and settled",
        f"        {paid} model calls paid for twice",
        f"        the undisturbed run {'also' if same else 'did not'} answered so",
    ]
    return "\n".join(lines)


SHOWN = (
    "re_executed_calls",
    "duplicate_effects",
    "missing_effects",
    "lost_events",
    "lost_acknowledged",
)
"""The counts that are always shown; the others only when they are not zero."""
SAID_OTHERWISE = ("stuck_runs", "broken_logs")


if __name__ == "__main__":
    main()
