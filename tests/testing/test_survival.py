"""Real processes, killed at every fault point, finish their work; and the judge can say no."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.core import events as e
from perdure.core.codec import genesis, seal
from perdure.ports import faults
from perdure.runtime.handles import recorded
from perdure.testing.witness import SESSION, Found, Kill, judge

KEYS = {
    "completed",
    "kills",
    "re_executed_calls",
    "duplicate_effects",
    "missing_effects",
    "lost_events",
    "chain_ok",
    "same_answer",
    "events",
    "seconds",
}


def crash(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the crash rig in a process of its own: it forks, and may have no threads."""
    command = [sys.executable, "-m", "perdure.testing.crash", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("arguments", [(), ("--twice",)], ids=["once", "again while recovering"])
def test_a_process_killed_at_any_point_is_survived(arguments: tuple[str, ...]) -> None:
    finished = crash(*arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    summary = finished.stdout.strip().splitlines()[-1]
    assert summary.endswith(" 0 bad")
    assert int(summary.split()[0]) > 80


@pytest.mark.parametrize("seed", range(1, 6))
def test_seeded_chains_of_crashes_are_survived(seed: int) -> None:
    finished = crash("--seed", str(seed))
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_demonstration_keeps_every_promise_and_says_so(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("line\n" * number)
    command = [sys.executable, "-m", "perdure", "demo", "durability", str(tmp_path), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    last = json.loads(finished.stdout.splitlines()[-1])
    assert last.keys() == KEYS
    assert last["completed"]
    assert last["chain_ok"]
    assert last["kills"] == 7
    wrong = ("re_executed_calls", "duplicate_effects", "missing_effects", "lost_events")
    assert [last[name] for name in wrong] == [0, 0, 0, 0]


class TestTheJudge:
    """The witness must be able to say no: each lie is told to it once."""

    LOG = (
        e.MessageReceived(at=1, message="r", content="go"),
        e.RunStarted(at=1, run="r", number=1, agent="a"),
        e.ModelCallIntended(at=1, call="1.1.m1", step=1, first=1, upto=2, agent="a"),
        e.ModelReplied(at=1, call="1.1.m1", content="done"),
        e.RunCompleted(at=1, run="r", answer=4),
    )

    def judged(
        self, out: Path, ledger: list[dict[str, object]], killed_at: int | None = None
    ) -> Found:
        (out / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
        records = seal(genesis(SESSION), 0, self.LOG)
        log = [recorded(one.seq, one.body) for one in records]
        kills = []
        if killed_at is not None:
            kills = [Kill(1, "model.after", log[:killed_at], records[:killed_at])]
        return judge(out, kills, log, log, records)

    def test_an_honest_run_is_good(self, tmp_path: Path) -> None:
        assert self.judged(tmp_path, [{"what": "model", "turn": 0, "pid": 1}]).good

    def test_a_model_asked_again_after_its_reply_was_durable_is_seen(self, tmp_path: Path) -> None:
        ledger: list[dict[str, object]] = [{"what": "model", "turn": 0, "pid": n} for n in (1, 2)]
        found = self.judged(tmp_path, ledger, killed_at=4)
        assert found.re_executed_calls == 1
        assert not found.good

    def test_a_model_asked_again_before_that_is_allowed(self, tmp_path: Path) -> None:
        ledger: list[dict[str, object]] = [{"what": "model", "turn": 0, "pid": n} for n in (1, 2)]
        assert self.judged(tmp_path, ledger, killed_at=3).good

    def test_an_effect_that_happened_twice_is_seen(self, tmp_path: Path) -> None:
        ledger: list[dict[str, object]] = [{"what": "effect", "key": "k", "pid": 1}] * 2
        assert self.judged(tmp_path, ledger).duplicate_effects == 1

    def test_a_line_published_twice_is_seen(self, tmp_path: Path) -> None:
        (tmp_path / "published.jsonl").write_text('{"key": "k"}\n' * 2)
        assert self.judged(tmp_path, []).duplicate_effects == 1

    def test_a_durable_event_that_is_gone_is_seen(self, tmp_path: Path) -> None:
        (tmp_path / "ledger.jsonl").write_text("")
        records = seal(genesis(SESSION), 0, self.LOG)
        log = [recorded(one.seq, one.body) for one in records]
        kill = Kill(1, "x", log, records)
        found = judge(tmp_path, [kill], log, log[:3], records[:3])
        assert (found.lost_events, found.completed) == (2, False)


def test_every_fault_point_is_named_in_product_code() -> None:
    source = Path(faults.__file__).parents[1]
    text = "\n".join(path.read_text() for path in source.rglob("*.py") if path.name != "faults.py")
    assert [site for site in faults.SITES if f'reach("{site}")' not in text] == []
