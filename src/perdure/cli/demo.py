"""`perdure demo`: see for yourself that an agent survives SIGKILL."""

from __future__ import annotations

import difflib
import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import click

from perdure.bootstrap import SQLITE_PREFIX, open_reader
from perdure.cli.common import command_body
from perdure.cli.events import gist
from perdure.cli.lives import Death, Lives
from perdure.cli.output import Output, short
from perdure.core.codec import Record
from perdure.core.errors import BrokenChain
from perdure.core.events import ModelReplied, RunCompleted
from perdure.core.export import verify_log
from perdure.core.ids import SessionId
from perdure.runtime.handles import RecordedEvent, recorded

SESSION = SessionId("default", "surveyor", "survey")
KILLS = (
    ("model.before:2", "in a model call"),
    ("user.measuring:2", "in the middle of a tool"),
    ("claim.after:1", "during recovery: claimed, nothing decided"),
    ("store.after_commit:3", "after a commit, before anybody was told"),
    ("user.saved:1", "between an idempotent effect and its record"),
    ("user.published:1", "between a once-only effect and its record"),
    ("claim.after:1", "during that recovery, too"),
)
OUTCOMES = frozenset({"tool_call_succeeded", "tool_call_failed"})


class Kill(NamedTuple):
    """A death, and the log as it was on disk then."""

    death: Death
    why: str
    log: list[RecordedEvent]
    records: list[Record]


class Found(NamedTuple):
    """What the log and the witness say after all."""

    completed: bool
    kills: int
    re_executed_calls: int
    duplicate_effects: int
    missing_effects: int
    lost_events: int
    chain_ok: bool
    same_answer: bool
    events: int

    @property
    def good(self) -> bool:
        """Say whether every promise was kept."""
        wrong = self.re_executed_calls + self.duplicate_effects + self.missing_effects
        return self.completed and self.chain_ok and wrong + self.lost_events == 0


@click.group()
def demo() -> None:
    """Demonstrations that can fail."""


@demo.command(epilog="Example: perdure demo durability ~/projects/mine")
@click.argument(
    "directory",
    required=False,
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
)
@click.option("--model", help="A real model instead of the function: anthropic:claude-sonnet-5.")
@click.option("--keep", is_flag=True, help="Keep the store, the ledger and the effects.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@command_body
async def durability(directory: Path, model: str | None, keep: bool, as_json: bool) -> int:
    """Kill an agent with SIGKILL at its worst moments and let it finish.

    The agent surveys DIRECTORY (by default the current one): it reads real files, saves a report
    and publishes a line, in a real process over SQLite. It is killed seven times. Afterwards its
    log, an external ledger of what really happened, and an undisturbed run are compared.
    """
    output = Output(as_json)
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    try:
        played = model or "a function that plays the model (--model asks a real one)"
        output.say(f"The agent surveys {directory}. Its model is {played}.\n")
        quiet_lives = Lives(work / "quiet.db", directory, work / "quiet", model)
        quiet_lives.to_the_end()
        quiet, _ = await _log(work / "quiet.db")
        output.say(f"undisturbed   {len(quiet)} events, the reference\n")
        kills = await _kill_again_and_again(work, directory, model, output)
        log, records = await _log(work / "killed.db")
        found = _judge(work / "killed", kills, quiet, log, records)
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
        log, records = await _log(work / "killed.db")
        kills.append(Kill(death, why, log, records))
        output.record(
            {"kill": len(kills), "pid": death.pid, "site": death.site, "durable": len(log)},
            f"SIGKILL {len(kills)}     pid {death.pid:<8} {why:<44} {len(log):>3} events durable",
        )
    pid = lives.to_the_end()
    output.say(f"last life     pid {pid:<8} ran to the end")
    return kills


async def _log(path: Path) -> tuple[list[RecordedEvent], list[Record]]:
    if not path.exists():
        return [], []
    reader = await open_reader(SQLITE_PREFIX + str(path))
    try:
        records = await reader.read(SESSION, 0, 10_000)
    finally:
        await reader.close()
    return [recorded(one.seq, one.body) for one in records], records


def _judge(
    out: Path,
    kills: list[Kill],
    quiet: list[RecordedEvent],
    log: list[RecordedEvent],
    records: list[Record],
) -> Found:
    ledger = _ledger(out)
    effects = Counter(line["key"] for line in ledger if line["what"] == "effect")
    published = out / "published.jsonl"
    lines = published.read_text().splitlines() if published.exists() else []
    twice = Counter(json.loads(line)["key"] for line in lines)
    done = [one for one in log if one.type == "tool_call_intended"]
    keys = {one.event.key for one in done if one.event.effect != "read"}  # type: ignore[attr-defined]
    return Found(
        completed=bool(log) and log[-1].type == "run_completed",
        kills=len(kills),
        re_executed_calls=_executed_again(ledger, kills),
        duplicate_effects=sum(count - 1 for count in (effects | twice).values()),
        missing_effects=len(keys - set(effects)),
        lost_events=sum(len(set(kill.records) - set(records)) for kill in kills),
        chain_ok=_chain_ok(records),
        same_answer=_answer(quiet) == _answer(log),
        events=len(log),
    )


def _executed_again(ledger: list[dict[str, Any]], kills: list[Kill]) -> int:
    """Count the calls that ran in a later life although their result was durable."""
    again = 0
    lives = [kill.death.pid for kill in kills]
    for number, kill in enumerate(kills):
        before = set(lives[: number + 1])
        calls = {one.event.call for one in kill.log if one.type in OUTCOMES}  # type: ignore[attr-defined]
        turns = sum(isinstance(one.event, ModelReplied) for one in kill.log)
        for line in ledger:
            if line["pid"] in before:
                continue
            again += line["what"] == "tool" and line["call"] in calls
            again += line["what"] == "model" and line["turn"] < turns
    return again


def _chain_ok(records: list[Record]) -> bool:
    try:
        verify_log(SESSION, records)
    except BrokenChain:
        return False
    return True


def _answer(log: list[RecordedEvent]) -> Any:
    for one in reversed(log):
        if isinstance(one.event, RunCompleted):
            answer = log[one.event.answer - 1].event
            return answer.content if isinstance(answer, ModelReplied) else None
    return None


def _ledger(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def _show(
    output: Output,
    quiet: list[RecordedEvent],
    log: list[RecordedEvent],
    kills: list[Kill],
    out: Path,
) -> None:
    """Print both logs side by side, and the ledger of effects."""
    width = max(40, min(76, shutil.get_terminal_size((150, 24)).columns // 2 - 4))
    output.say(f"\n{'undisturbed':<{width}}  |  killed {len(kills)} times (L = life)")
    output.say("-" * width + "--+--" + "-" * width)
    for left, right in _aligned(quiet, log):
        a = _cell(left, None, width) if left else ""
        b = _cell(right, _life(right, kills), width) if right else ""
        output.say(f"{a:<{width}}  |  {b}")
    output.say("\nledger of effects, written by the far ends:")
    for line in _ledger(out):
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
