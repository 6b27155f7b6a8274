"""`perdure run`, `resume` and `runs`: what they do, what they print, and how they exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.checked_logs import check_file
from tests.cli.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Give a directory with agents in it; every log that is written there is checked."""
    terminal = Terminal(tmp_path)
    yield terminal
    for store in () if terminal.forged else tmp_path.rglob("*.db"):
        asyncio.run(check_file(store))


ROW_KEYS = {
    "run",
    "agent",
    "session",
    "status",
    "created_at",
    "ended_at",
    "steps",
    "input_tokens",
    "output_tokens",
    "merged_into",
    "error_class",
    "code",
    "message",
    "waiting_for",
    "purse",
}


def test_run_shows_events_and_ends_with_the_answer(terminal: Terminal) -> None:
    finished = terminal.run("count the files")
    assert finished.code == 0, finished.err
    *events, row = finished.lines
    assert [event["type"] for event in events][:2] == ["message_received", "run_started"]
    assert all(event.keys() == {"seq", "type", "at", "data"} for event in events)
    assert row.keys() == ROW_KEYS | {"output"}
    assert (row["status"], row["output"]) == ("completed", "done: 1")
    assert terminal.ran() == ["count_files"]


def test_run_for_people_tells_the_run_and_the_answer(terminal: Terminal) -> None:
    finished = terminal.perdure("run", "agents.py:helper", "count the files")
    assert finished.out.startswith("run ")
    assert finished.out.rstrip().endswith("done: 1")


def test_a_killed_run_is_resumed_and_the_once_tool_is_not_run_again(terminal: Terminal) -> None:
    terminal.kill_when("paying", "run", "agents.py:helper", "pay", HANG="1")
    listed = terminal.perdure("runs", "list", "--json").lines
    assert [row["status"] for row in listed] == ["running"]
    finished = terminal.perdure("resume", "--json")
    assert finished.code == 9, finished.err
    assert finished.lines[-1]["waiting_for"][0]["what"] == "decision"
    run, call = finished.lines[-1]["run"], finished.lines[-1]["waiting_for"][0]["call"]
    resolved = terminal.perdure(
        "runs", "resolve", run, call, "happened", "--content", "seen", "--json"
    )
    assert resolved.code == 0, resolved.err
    assert resolved.lines[-1]["output"] == "done: seen"
    assert terminal.ran() == ["pay 5"]
    assert terminal.perdure("resume").out.startswith("Nothing to resume")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(terminal: Terminal, number: int) -> None:
    process = terminal.start("run", "agents.py:helper", "sleep")
    assert process.stdout is not None
    for line in process.stdout:
        if "timer_started" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "perdure resume" in out


def test_a_question_is_answered_from_another_process(terminal: Terminal) -> None:
    asked = terminal.run("ask me")
    assert asked.code == 9
    waiting = asked.lines[-1]
    assert waiting["waiting_for"][0]["question"] == "Shall I?"
    run = waiting["run"]
    assert "perdure runs reply" in terminal.perdure("runs", "show", run).out
    answered = terminal.perdure("runs", "reply", run[:16], "yes please", "--json")
    assert answered.code == 0, answered.err
    assert answered.lines[-1]["output"] == "done: yes please"
    assert terminal.perdure("runs", "reply", run, "again").code == 6


TEAM = """
from perdure import Agent, ask_human, launch_agent
from perdure.testing import ScriptedModel, asks, call

def last(request):
    return str(request.messages[-1].content)

ask = asks(call("launch_agent", agent_name="ann", message="What does tea cost?"))
boss = Agent("boss", model=ScriptedModel(ask, last), tools=[launch_agent])
which = asks(call("ask_human", question="Which tea?"))
ann = Agent("ann", model=ScriptedModel(which, last), tools=[ask_human])
"""


def test_a_child_that_asks_parks_them_all_and_is_answered(terminal: Terminal) -> None:
    """The agents of a file may launch one another; what is asked is answered by its own run."""
    (terminal.directory / "team.py").write_text(TEAM, encoding="utf-8")
    asked = terminal.perdure("run", "team.py:boss", "hello")
    assert asked.code == 9, asked.err
    assert "Which tea?" in asked.out
    rows = terminal.perdure("runs", "list", "--json").lines
    child = next(row["run"] for row in rows if row["agent"] == "ann")
    assert f"perdure runs reply {child} 'ANSWER'" in asked.out
    assert terminal.perdure("runs", "reply", child, "black").code == 0
    finished = terminal.perdure("resume", "--json")
    assert finished.code == 0, finished.err
    rows = terminal.perdure("runs", "list", "--json").lines
    assert {row["agent"]: row["status"] for row in rows} == {
        "ann": "completed",
        "boss": "completed",
    }


def test_a_run_is_cancelled_and_listed_so(terminal: Terminal) -> None:
    run = terminal.run("ask me").lines[-1]["run"]
    assert terminal.perdure("runs", "cancel", run, "--reason", "enough").code == 0
    shown = terminal.perdure("runs", "show", run, "--json").lines[0]
    assert (shown["status"], shown["message"]) == ("cancelled", "enough")
    assert (
        terminal.perdure("runs", "list", "--status", "cancelled", "--json").lines[0]["run"] == run
    )
    assert terminal.perdure("runs", "cancel", run).code == 6


def test_a_failed_run_is_retried_where_it_stopped(terminal: Terminal) -> None:
    failed = terminal.run("count, then fail")
    assert failed.code == 4
    assert failed.lines[-1]["code"] == "status_404"
    (terminal.directory / "mended").touch()
    again = terminal.perdure("runs", "retry", failed.lines[-1]["run"], "--json")
    assert again.code == 0, again.err
    assert again.lines[-1]["output"].startswith("done: ")
    assert terminal.ran() == ["count_files"]


def test_a_run_is_forked_in_the_middle(terminal: Terminal) -> None:
    run = terminal.run("count").lines[-1]["run"]
    fork = terminal.perdure("runs", "fork", run, "--step", "1", "--json")
    assert fork.code == 0, fork.err
    again = terminal.perdure(
        "runs", "fork", fork.lines[-1]["run"], "--step", "0", "--message", "more", "--json"
    )
    assert again.lines[-1]["output"] == "done: more"
    assert terminal.ran() == ["count_files"]
    beyond = terminal.perdure("runs", "fork", run, "--step", "9")
    assert "step 9 is beyond the run's last step (2)" in beyond.err


def test_events_and_tail_tell_the_same_story(terminal: Terminal) -> None:
    run = terminal.run("count").lines[-1]["run"]
    events = terminal.perdure("runs", "events", run, "--json")
    tail = terminal.perdure("runs", "tail", run, "--json")
    assert events.lines == tail.lines
    assert [event["seq"] for event in events.lines] == list(range(1, len(events.lines) + 1))
    after = terminal.perdure("runs", "events", run, "--after", "4", "--json").lines
    assert after == events.lines[4:]


def test_the_same_idempotency_key_runs_once(terminal: Terminal) -> None:
    more = ("--session", "s", "--idempotency-key", "k")
    first, second = terminal.run("count", *more), terminal.run("count", *more)
    assert first.lines[-1]["run"] == second.lines[-1]["run"]
    assert terminal.ran() == ["count_files"]


class TestVerifying:
    def test_an_export_and_a_store_are_whole(self, terminal: Terminal) -> None:
        run = terminal.run("count").lines[-1]["run"]
        assert terminal.perdure("runs", "export", run, "--to", "run.jsonl").code == 0
        found = terminal.perdure("verify", "run.jsonl", "--json")
        assert (found.code, found.lines[0]["ok"]) == (0, True)
        assert terminal.perdure("verify", ".perdure/perdure.db", "--json").lines[0]["ok"]

    def test_a_changed_export_is_found_with_its_position(self, terminal: Terminal) -> None:
        run = terminal.run("count").lines[-1]["run"]
        export = terminal.perdure("runs", "export", run).out
        (terminal.directory / "forged.jsonl").write_text(export.replace('"count"', '"amount"', 1))
        found = terminal.perdure("verify", "forged.jsonl", "--json")
        assert found.code == 8
        assert found.lines[0]["first_bad"] == 1


class TestWhatAPersonIsShown:
    """Nothing is shown, asked or followed that is not what was written."""

    def changed(self, terminal: Terminal) -> str:
        """Return a run that waits, after its question was changed in the store's file."""
        run: str = terminal.run("ask me").lines[-1]["run"]
        terminal.forged = True
        db = apsw.Connection(str(terminal.directory / ".perdure" / "perdure.db"))
        db.execute("UPDATE events SET body = CAST(replace(body, 'Shall I?', 'May I??!') AS BLOB)")
        db.close()
        return run

    @pytest.mark.parametrize("command", ["show", "tail", "export"])
    def test_a_changed_log_is_not_shown_as_fact(self, terminal: Terminal, command: str) -> None:
        finished = terminal.perdure("runs", command, self.changed(terminal))
        assert finished.code == 8
        assert "is broken: event" in finished.err
        assert "May I??!" not in finished.out

    def test_a_changed_question_is_not_asked_again(self, terminal: Terminal) -> None:
        run = self.changed(terminal)
        for arguments in (("resume",), ("runs", "reply", run, "yes"), ("runs", "cancel", run)):
            finished = terminal.perdure(*arguments)
            assert finished.code == 8
            assert "May I??!" not in finished.out

    def test_a_session_in_quarantine_says_so_and_how_it_is_released(
        self, terminal: Terminal
    ) -> None:
        run = terminal.run("ask me", "--session", "s").lines[-1]["run"]
        db = apsw.Connection(str(terminal.directory / ".perdure" / "perdure.db"))
        db.execute("UPDATE sessions SET quarantine = 'it kills its host'")
        db.close()
        for arguments in (("tail", run), ("show", run), ("reply", run, "yes"), ("cancel", run)):
            finished = terminal.perdure("runs", *arguments)
            assert finished.code == 10
            assert "perdure sessions release helper s" in finished.err
        listed = terminal.perdure("sessions", "list", "--quarantined", "--json").lines
        assert [one["quarantine"] for one in listed] == ["it kills its host"]
        assert terminal.perdure("sessions", "release", "helper", "s").code == 0
        assert terminal.perdure("sessions", "release", "helper", "s").code == 6
        assert terminal.perdure("runs", "reply", run, "yes").code == 0

    def test_what_a_tool_prints_does_not_mix_with_json(self, terminal: Terminal) -> None:
        finished = terminal.run("count")
        assert finished.lines[-1]["status"] == "completed"
        assert "counting, says the tool" in finished.err

    def test_a_place_that_cannot_be_written_gets_one_line(self, terminal: Terminal) -> None:
        run = terminal.run("count").lines[-1]["run"]
        finished = terminal.perdure("runs", "export", run, "--to", "missing/run.jsonl")
        assert finished.code == 1
        assert finished.err.count("\n") == 1


@pytest.mark.parametrize("key", ["\x03", "\x04", "\r"])
def test_a_question_on_a_terminal_can_be_left_at_once(terminal: Terminal, key: str) -> None:
    """Ctrl-C, Ctrl-D and an empty line: nobody has to type into a dead prompt."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(terminal.directory)
        command = [sys.executable, "-m", "perdure", "run", "agents.py:helper", "ask me"]
        os.execve(sys.executable, command, terminal.environment)
    seen = b""
    while b"> " not in seen:
        seen += os.read(fd, 1024)
    os.write(fd, key.encode())
    with contextlib.suppress(OSError):
        while chunk := os.read(fd, 1024):
            seen += chunk
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (130 if key == "\x03" else 9)
    os.close(fd)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "agents.py:nobody", "x"), 2, "its agents are: helper, keyless"),
        (("run", "agents.py", "x"), 2, "name one agent as agents.py:AGENT"),
        (("run", "missing.py:a", "x"), 2, "missing.py"),
        (("run", "agents.py:helper", "x" * 100_000, "--mode", "shout"), 2, "shout"),
        (("run", "agents.py:helper", "x", "--store", "mysql://x"), 2, "sqlite:///FILE"),
        (("run", "agents.py:helper", "x", "--model", "gpt5"), 2, "names no provider"),
        (("run", "agents.py:helper", "x", "--model", "nobody:gpt5"), 2, "unknown provider"),
        (("runs", "show", "0000"), 3, "no store"),
        (("resume",), 3, "no store"),
        (("verify", "agents.py"), 2, "not the header"),
    ],
)
def test_bad_input_gets_one_clear_line(
    terminal: Terminal, arguments: Any, code: int, message: str
) -> None:
    finished = terminal.perdure(*arguments)
    assert finished.code == code
    assert message in finished.err
    assert "Traceback" not in finished.err


def test_an_unknown_run_is_not_found(terminal: Terminal) -> None:
    terminal.run("hello")
    finished = terminal.perdure("runs", "show", "nothing-like-it")
    assert finished.code == 3
    assert "perdure runs list" in finished.err


def test_a_missing_key_names_the_variable_and_the_way_without(terminal: Terminal) -> None:
    finished = terminal.perdure("run", "agents.py:keyless", "x", "--json")
    assert finished.code == 4
    row = finished.lines[-1]
    assert row["code"] == "missing_api_key"
    assert "ANTHROPIC_API_KEY" in row["message"]
    assert "cripted" in row["message"]


def test_a_second_process_is_told_who_holds_the_store(terminal: Terminal) -> None:
    process = terminal.start("run", "agents.py:helper", "sleep")
    assert process.stdout is not None
    for line in process.stdout:
        if "timer_started" in line:
            break
    finished = terminal.run("hello")
    assert finished.code == 7
    assert str(process.pid) in finished.err
    assert terminal.perdure("runs", "list", "--json").lines[0]["status"] == "waiting"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


def test_doctor_tells_what_is_here(terminal: Terminal) -> None:
    terminal.run("hello")
    finished = terminal.perdure("doctor", "--json", ANTHROPIC_API_KEY="a-secret-value")
    assert finished.code == 0, finished.out
    checks = {check["check"]: check for check in finished.lines}
    assert checks["sqlite"]["ok"]
    assert "WAL" in str(checks["store"]["found"]).upper()
    assert checks["anthropic"]["ok"]
    assert "a-secret-value" not in finished.out


def test_control_characters_of_others_do_not_reach_the_terminal(terminal: Terminal) -> None:
    finished = terminal.perdure("run", "agents.py:helper", "hi \x1b[31m\u202e there")
    assert "\x1b" not in finished.out
    assert "\u202e" not in finished.out
    assert "\\x1b[31m" in finished.out
