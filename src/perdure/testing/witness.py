"""What became of the agent's work: the log, the ledger and the far ends, held against each other.

The ledger was written by the far ends at the moment of each effect, and the log was read after each
death: neither knows what the other says.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from perdure.bootstrap import SQLITE_PREFIX, open_reader
from perdure.core.codec import Record
from perdure.core.errors import BrokenChain
from perdure.core.events import (
    ModelReplied,
    RunCompleted,
    ToolCallFailed,
    ToolCallIntended,
    ToolCallSucceeded,
)
from perdure.core.export import verify_log
from perdure.core.ids import SessionId
from perdure.runtime.handles import RecordedEvent, recorded
from perdure.testing.trace import LeftModel, check_log

SESSION = SessionId("default", "surveyor", "survey")
OUTCOMES = (ToolCallSucceeded, ToolCallFailed)


class Kill(NamedTuple):
    """A death: the process, the fault point it stood at, and the log as it was on disk then."""

    pid: int
    site: str
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


async def read_log(path: Path) -> tuple[list[RecordedEvent], list[Record]]:
    """Return the agent's log in a store; empty if there is none yet."""
    if not path.exists():
        return [], []
    reader = await open_reader(SQLITE_PREFIX + str(path))
    try:
        records = await reader.read(SESSION, 0, 10_000)
    finally:
        await reader.close()
    return [recorded(one.seq, one.body) for one in records], records


def judge(
    out: Path,
    kills: list[Kill],
    quiet: list[RecordedEvent],
    log: list[RecordedEvent],
    records: list[Record],
) -> Found:
    """Hold the log, the ledger and the undisturbed run against each other."""
    ledger = read_ledger(out)
    effects = Counter(line["key"] for line in ledger if line["what"] == "effect")
    published = out / "published.jsonl"
    lines = published.read_text().splitlines() if published.exists() else []
    twice = Counter(json.loads(line)["key"] for line in lines)
    done = [one.event for one in log if isinstance(one.event, ToolCallIntended)]
    keys = {event.key for event in done if event.effect != "read"}
    return Found(
        completed=bool(log) and log[-1].type == "run_completed",
        kills=len(kills),
        re_executed_calls=_executed_again(ledger, kills),
        duplicate_effects=sum(count - 1 for count in (effects | twice).values()),
        missing_effects=len(keys - set(effects)),
        lost_events=sum(len(set(kill.records) - set(records)) for kill in kills),
        chain_ok=_chain_ok(records),
        same_answer=answer_in(quiet) == answer_in(log),
        events=len(log),
    )


def _executed_again(ledger: list[dict[str, Any]], kills: list[Kill]) -> int:
    """Count the calls that ran in a later life although their result was durable."""
    again = 0
    lives = [kill.pid for kill in kills]
    for number, kill in enumerate(kills):
        before = set(lives[: number + 1])
        calls = {one.event.call for one in kill.log if isinstance(one.event, OUTCOMES)}
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
        check_log(SESSION, records)
    except (BrokenChain, LeftModel):
        return False
    return True


def answer_in(log: list[RecordedEvent]) -> Any:
    """Return the answer that ends a log, or None."""
    for one in reversed(log):
        if isinstance(one.event, RunCompleted):
            answer = log[one.event.answer - 1].event
            return answer.content if isinstance(answer, ModelReplied) else None
    return None


def read_ledger(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the ledger."""
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
