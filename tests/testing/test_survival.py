"""Real processes, killed at every fault point and step, finish their work; the judge can say no."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from perdure.core import events as e
from perdure.core.codec import genesis, seal
from perdure.ports import faults
from perdure.testing.crash import AGAIN
from perdure.testing.judge import WRONG, Found, judge
from perdure.testing.ledger import Ledger, read_ledger, running_ledger
from perdure.testing.mutants import MUTANTS
from perdure.testing.witness import SESSION, Kill, Seen

NAME = str(SESSION)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a rig in a process of its own: it forks, and may have no threads."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def crash(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the crash rig."""
    return run("perdure.testing.crash", "--jobs", "1", *arguments)


class TestTheCrashRig:
    """A part of the suite here; `make proof` runs all of it."""

    def test_a_process_killed_anywhere_is_survived(self) -> None:
        finished = crash("--scenarios", "60")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        summary = finished.stdout.strip().splitlines()[-1]
        assert summary.startswith("60 scenarios, ")
        assert summary.endswith(" 0 bad")

    @pytest.mark.parametrize("site", faults.SITES)
    def test_a_process_killed_again_while_it_recovers_is_survived(self, site: str) -> None:
        finished = crash("--at", f"user.published:1,{site}:1")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert "1 scenarios, 2 deaths, 1 while recovering" in finished.stdout

    @pytest.mark.parametrize("seed", range(1, 4))
    def test_seeded_chains_of_crashes_are_survived(self, seed: int) -> None:
        finished = crash("--seed", str(seed))
        assert finished.returncode == 0, finished.stdout + finished.stderr

    @pytest.mark.parametrize(
        "mutant", [name for name, mutant in MUTANTS.items() if mutant.rig == "crash"]
    )
    def test_the_crash_rig_catches(self, mutant: str) -> None:
        finished = crash("--scenarios", "200", "--break", mutant)
        assert finished.returncode == 1, finished.stdout + finished.stderr
        assert f"BAD {AGAIN} " in finished.stdout


class TestTheDemonstration:
    """`perdure demo durability`, over a directory of three files."""

    def demonstrate(self, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
        for number in range(3):
            (root / f"{number}.txt").write_text("line\n" * number)
        return run("perdure", "demo", "durability", str(root), *options)

    def test_it_keeps_every_promise_and_says_so(self, tmp_path: Path) -> None:
        finished = self.demonstrate(tmp_path, "--json")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        last = json.loads(finished.stdout.splitlines()[-1])
        assert last.keys() == {*Found._fields, "good", "same_answer", "seconds"}
        assert (last["good"], last["same_answer"], last["kills"]) == (True, True, 7)
        assert [last[name] for name in WRONG] == [0] * len(WRONG)

    def test_a_broken_engine_turns_it_red(self, tmp_path: Path) -> None:
        finished = self.demonstrate(tmp_path, "--break", "once_sent_again")
        assert finished.returncode == 1, finished.stdout + finished.stderr
        assert "FAIL  2 effects happened twice" in finished.stdout


class TestKillMe:
    """`perdure demo kill-me`, which kills by itself here."""

    def test_it_stays_green_while_its_processes_are_killed(self) -> None:
        options = ("--rounds", "4", "--kill-every-seconds", "1.5")
        finished = run("perdure", "demo", "kill-me", *options)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert "at random" in finished.stdout
        assert finished.stdout.splitlines()[-1].endswith(" 0 wrong")

    def test_a_broken_engine_turns_it_red(self) -> None:
        options = ("--rounds", "40", "--break", "key_not_stable")
        finished = run("perdure", "demo", "kill-me", *options)
        assert finished.returncode == 1, finished.stdout + finished.stderr
        assert "calls came with another key than recorded" in finished.stdout

    def test_what_is_killed_by_hand_is_started_again_and_without_a_ledger_there_is_no_verdict(
        self,
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "perdure.testing.kill_me"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            ledger = number_after("ledger", process.stdout)
            agent = number_after("agent", process.stdout)
            os.kill(agent, signal.SIGKILL)
            found = next(line for line in process.stdout if f"agent {agent} ended" in line)
            assert "by SIGKILL; agent" in found
            os.kill(ledger, signal.SIGKILL)
            assert "no verdict" in process.stdout.read()
        assert process.returncode == 2


def number_after(word: str, lines: Iterable[str]) -> int:
    """Read until a line names a process, and return its id."""
    return next(int(found[1]) for line in lines if (found := re.search(rf"{word} (\d+)", line)))


class TestTheLedger:
    """The world outside."""

    def test_an_effect_with_a_key_that_is_honoured_happens_once(self, tmp_path: Path) -> None:
        world = tmp_path / "world"
        with running_ledger() as address:
            ledger = Ledger(address, world)
            assert not ledger.happened("k")
            assert ledger.effect("k", honour_key=True)
            assert not ledger.effect("k", honour_key=True)
            assert ledger.effect("k", honour_key=False)
            assert ledger.happened("k")
            ledger.close()
            again = Ledger(address, world)
            assert again.happened("k")
            again.close()
        assert [line["what"] for line in read_ledger(world)] == ["effect", "repeat", "effect"]

    def test_what_the_dead_said_last_is_heard_before_it_settles(self, tmp_path: Path) -> None:
        world = tmp_path / "world"
        with running_ledger() as address:
            dead, heir = Ledger(address, world), Ledger(address, world)
            dead.note("last words")
            dead.close()
            heir.settle()
            assert [line["what"] for line in read_ledger(world)] == ["last words"]
            heir.close()


CALL = {"call": "1.1.t0", "step": 1, "ordinal": 0, "name": "pay"}
ASKED = {"call": "1.1.m1", "step": 1, "first": 1, "upto": 2}
QUIET = (
    e.MessageReceived(at=1, message="r", content="go"),
    e.RunStarted(at=1, run="r", number=1, agent="a"),
    e.ModelCallIntended(at=1, **ASKED),
    e.ModelReplied(at=1, call="1.1.m1", content="done"),
    e.RunCompleted(at=1, run="r", answer=4),
)


def seen(*events: e.Event) -> Seen:
    """Return a session with these events."""
    return Seen(SESSION, tuple(seal(genesis(SESSION), 0, events)))


def model(pid: int, turn: int = 0, **more: Any) -> dict[str, Any]:
    """Return the ledger's line of a model that was asked."""
    return {"what": "model", "session": NAME, "turn": turn, "pid": pid, **more}


def ran(pid: int = 1, key: str = "k") -> dict[str, Any]:
    """Return the ledger's line of a tool that ran."""
    return {"what": "tool", "session": NAME, "call": CALL["call"], "key": key, "pid": pid}


def client(do: str, **more: Any) -> dict[str, Any]:
    """Return the ledger's line of an operation that was answered."""
    return {"what": "client", "do": do, "state": "ok", "session": NAME, **more}


EFFECT = {"what": "effect", "key": "k", "pid": 1}
INTENDED = e.ToolCallIntended(at=1, effect="once", key="k", **CALL)
BEGUN = e.ToolCallBegun(at=1, call=CALL["call"], attempt=1, worker="w")
LIES: list[tuple[str, list[dict[str, Any]], tuple[e.Event, ...], tuple[e.Event, ...] | None]] = [
    ("re_executed_calls", [model(1), model(2)], QUIET, QUIET[:4]),
    ("duplicate_effects", [EFFECT, EFFECT], (*QUIET[:3], INTENDED), None),
    ("missing_effects", [], (*QUIET[:3], INTENDED), None),
    ("calls_before_intent", [EFFECT], QUIET, None),
    ("calls_before_intent", [ran()], QUIET, QUIET[:3]),
    ("once_calls_repeated", [ran(), ran()], (*QUIET[:3], INTENDED, BEGUN), None),
    ("wrong_keys", [ran(key="other")], (*QUIET[:3], INTENDED), None),
    ("hidden_doubts", [], QUIET, (*QUIET[:3], INTENDED, BEGUN)),
    ("lost_events", [], QUIET[:3], QUIET),
    ("lost_acknowledged", [client("send", run="x", key="a")], QUIET, None),
    ("lost_acknowledged", [client("cancel", run="r")], QUIET, None),
    ("split_keys", [client("send", run=run, key="a") for run in "rs"], QUIET, None),
    ("broken_logs", [], (*QUIET[:3], QUIET[2]), None),
    ("malformed_histories", [model(1, malformed=["out of place"])], QUIET, None),
    ("divergent_ends", [], (*QUIET[:3], e.ModelReplied(at=1, call="1.1.m1", content="no")), None),
    ("stuck_runs", [], QUIET[:4], None),
]


class TestTheJudge:
    """It must be able to say no: each lie is told to it once."""

    def judged(
        self,
        lines: list[dict[str, Any]],
        log: tuple[e.Event, ...],
        at_death: tuple[e.Event, ...] | None = None,
    ) -> Found:
        kills = []
        if at_death is not None:
            kills = [Kill(1, "x", {NAME: seen(*at_death)}, min(1, len(lines)))]
        return judge(lines, kills, {NAME: seen(*QUIET)}, {NAME: seen(*log)})

    @pytest.mark.parametrize(("wrong", "lines", "log", "at_death"), LIES)
    def test_it_sees(
        self,
        wrong: str,
        lines: list[dict[str, Any]],
        log: tuple[e.Event, ...],
        at_death: tuple[e.Event, ...] | None,
    ) -> None:
        found = self.judged(lines, log, at_death)
        assert getattr(found, wrong) > 0
        assert not found.good
        assert any(WRONG[wrong] in text for text in found.violations())

    def test_every_way_to_be_wrong_is_tried(self) -> None:
        assert {wrong for wrong, *_ in LIES} == set(WRONG)

    def test_an_honest_run_is_good(self) -> None:
        known = client("send", run="r", key="a")
        assert self.judged([known, model(1), known], QUIET).good

    def test_a_model_asked_again_before_its_reply_was_durable_is_paid_twice(self) -> None:
        found = self.judged([model(1), model(2)], QUIET, QUIET[:3])
        assert found.good
        assert (found.models_asked, found.models_recorded) == (2, 1)


def test_every_fault_point_is_named_in_product_code() -> None:
    source = Path(faults.__file__).parents[1]
    text = "\n".join(path.read_text() for path in source.rglob("*.py") if path.name != "faults.py")
    assert [site for site in faults.SITES if f'reach("{site}")' not in text] == []
