"""The durability demonstration: an agent process is killed at its worst moments, and finishes.

`perdure demo durability` runs this module in a process of its own.
"""

from __future__ import annotations

import asyncio
import difflib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from perdure.cli.events import gist
from perdure.cli.output import Output, plain, short
from perdure.core.errors import PerdureError
from perdure.runtime.handles import RecordedEvent
from perdure.testing.lives import Lives
from perdure.testing.witness import Found, Kill, judge, read_ledger, read_log

KILLS = (
    ("model.before:2", "in a model call"),
    ("user.measuring:2", "in the middle of a tool"),
    ("claim.after:1", "during recovery: claimed, nothing decided"),
    ("commit.acknowledged:1", "after a commit, before anything came of it"),
    ("user.saved:1", "between an idempotent effect and its record"),
    ("user.published:1", "between a once-only effect and its record"),
    ("claim.after:1", "during that recovery, too"),
)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model")
@click.option("--keep", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
def main(directory: Path, model: str | None, keep: bool, as_json: bool) -> None:
    """Run the demonstration over DIRECTORY."""
    try:
        sys.exit(asyncio.run(demonstrate(directory.resolve(), model, keep, Output(as_json))))
    except PerdureError as error:
        click.echo(f"perdure: {plain(error)}", err=True)
        sys.exit(1)


async def demonstrate(directory: Path, model: str | None, keep: bool, output: Output) -> int:
    """Run undisturbed, run with kills, compare; return the exit code."""
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    try:
        played = model or "a function that plays the model (--model asks a real one)"
        output.say(f"The agent surveys {directory}. Its model is {played}.\n")
        Lives(work / "quiet.db", directory, work / "quiet", model).to_the_end()
        quiet, _ = await read_log(work / "quiet.db")
        output.say(f"undisturbed   {len(quiet)} events, the reference\n")
        kills = await _kill_again_and_again(work, directory, model, output)
        log, records = await read_log(work / "killed.db")
        found = judge(work / "killed", kills, quiet, log, records)
        _show(output, quiet, log, kills, work / "killed")
        output.record(
            {**found._asdict(), "seconds": round(time.monotonic() - began, 2)},
            _verdict(found),
        )
        if keep:
            output.say(f"\nKept in {work}; try: perdure verify {work / 'killed.db'}")
        return 0 if found.good else 1
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


async def _kill_again_and_again(
    work: Path, directory: Path, model: str | None, output: Output
) -> list[Kill]:
    lives = Lives(work / "killed.db", directory, work / "killed", model)
    kills: list[Kill] = []
    for fault, why in KILLS:
        death = lives.until_killed(fault)
        if death is None:
            break
        log, records = await read_log(work / "killed.db")
        kills.append(Kill(death.pid, death.site, log, records))
        output.record(
            {"kill": len(kills), "pid": death.pid, "site": death.site, "durable": len(log)},
            f"SIGKILL {len(kills)}  pid {death.pid:<7} {why:<43} {len(log):>2} events durable",
        )
    pid = lives.to_the_end()
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
    output.say("\nledger of effects, written by the far ends:")
    for line in read_ledger(out):
        if line["what"] == "effect":
            output.say(f"  {line['tool']:<12} key {line['key']}  by pid {line['pid']}")
    output.say("")


def _life(one: RecordedEvent, kills: list[Kill]) -> int:
    return 1 + sum(len(kill.log) < one.seq for kill in kills)


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


def _verdict(found: Found) -> str:
    def line(good: bool, text: str) -> str:
        return f"  {'ok  ' if good else 'FAIL'}  {text}"

    return "\n".join(
        (
            line(found.completed, f"the run completed after {found.kills} SIGKILLs"),
            line(
                found.re_executed_calls == 0,
                f"{found.re_executed_calls} completed calls made again",
            ),
            line(found.duplicate_effects == 0, f"{found.duplicate_effects} effects happened twice"),
            line(found.missing_effects == 0, f"{found.missing_effects} effects are missing"),
            line(found.lost_events == 0, f"{found.lost_events} durable events lost or changed"),
            line(found.chain_ok, f"the chain over {found.events} events is whole"),
            f"        the undisturbed run {'also' if found.same_answer else 'did not'} answered so",
        )
    )


if __name__ == "__main__":
    main()
