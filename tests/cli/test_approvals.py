"""`perdure approvals`: on a server, and in a store."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.cli.output import marked
from tests.cli.hosted import Hosted, hosted
from tests.cli.terminal import Terminal

RULES = """
version = 1
name = "till"

[[rule]]
id = "payments"
verdict = "ask"
reason = "money"
tools = ["pay"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Give one server, on which payments are asked for, to all tests of this file."""
    folder = tmp_path_factory.mktemp("server")
    with hosted(folder) as server:
        rules = folder / "rules.toml"
        rules.write_text(RULES)
        assert "is in force" in server.ok("policy", "put", str(rules)).out
        yield server


def asking(server: Hosted) -> str:
    """Return a run that wants to pay."""
    done = server.perdure("send", "helper", "pay", "--wait", "--json")
    assert done.code == 9, done
    return str(done.lines[0]["id"])


def test_what_waits_is_listed_and_shown_with_what_cannot_be_seen(server: Hosted) -> None:
    run = asking(server)
    listed = server.ok("approvals", "list").out
    assert f'{run} 1.1.t0  May pay be called with {{"cents":5,"to":"ann<U+202E>"}}?' in listed
    shown = server.ok("approvals", "show", run).out
    assert '"to": "ann<U+202E>"' in shown
    assert "rule      payments: money" in shown
    assert server.one("approvals", "show", run)["tool"] == "pay"


def test_it_is_approved_from_elsewhere_and_the_story_is_told(server: Hosted) -> None:
    run = asking(server)
    seen = server.one("approvals", "show", run)["digest"]
    approved = server.ok("approvals", "approve", run, "--digest", seen)
    assert "I got 5 to ann" in approved.out
    assert server.perdure("approvals", "deny", run).code == 3
    late = server.perdure("approvals", "deny", run, "1.1.t0")
    assert (late.code, "was approved by" in late.err) == (6, True), late
    story = server.ok("runs", "events", run).out
    for event in ("approval_requested", "approval_given", "tool_call ", "run_completed"):
        assert event in story


def test_it_is_denied_with_a_reason_for_the_model(server: Hosted) -> None:
    run = asking(server)
    denied = server.ok("approvals", "deny", run, "--reason", "paid already").out
    assert "denied it: paid already" in denied


def test_arguments_are_changed_and_approved_anew(server: Hosted) -> None:
    run = asking(server)
    digest = server.one("approvals", "show", run)["digest"]
    server.ok("approvals", "edit", run, "--arguments", json.dumps({"cents": 1, "to": "bob"}))
    old = server.perdure("approvals", "approve", run, "--digest", digest)
    assert old.code == 6
    assert digest in old.err
    assert "I got 1 to bob" in server.ok("approvals", "approve", run, "--yes").out


def test_questions_and_approvals_are_in_one_list_with_what_answers_them(server: Hosted) -> None:
    paying, question = asking(server), server.perdure("send", "helper", "ask", "--wait", "--json")
    asked = str(question.lines[0]["id"])
    assert f"{asked} " not in server.ok("approvals", "list").out
    listed = server.ok("approvals", "list", "--all").out
    assert f"{asked} 1.1.t0  Shall I?\n  perdure runs reply {asked} 'ANSWER'" in listed
    assert f"perdure approvals approve|deny {paying} 1.1.t0" in listed
    kinds = {one["run"]: one["what"] for one in server.json("approvals", "list", "--all")}
    assert (kinds[asked], kinds[paying]) == ("answer", "approval")
    assert "I got yes" in server.ok("runs", "reply", asked, "yes").out
    assert "I got 5" in server.ok("approvals", "approve", paying, "--yes").out
    kinds = {one["run"]: one["what"] for one in server.json("approvals", "list", "--all")}
    assert not {asked, paying} & set(kinds)


def test_what_is_like_it_is_approved_ahead_listed_and_revoked(server: Hosted) -> None:
    run = asking(server)
    where = ("--where", '{"path": "cents", "at_most": 9}', "--days", "7")
    seen = server.one("approvals", "show", run)["digest"]
    always = server.ok("approvals", "always", run, *where, "--digest", seen, "--uses", "3")
    assert "is in force until" in always.out
    assert "I got 5 to ann" in always.out
    assert server.perdure("send", "helper", "pay", "--wait").code == 0
    [listed] = server.json("approvals", "standing")
    assert (listed["tool"], listed["standing"], listed["uses_per_session"]) == (
        "pay", "in_force", 3,
    )  # fmt: skip
    assert "in_force" in server.ok("approvals", "standing").out
    number = str(listed["id"])
    assert f"standing approval {number} is revoked" in server.ok("approvals", "revoke", number).out
    assert server.perdure("approvals", "revoke", number).code == 3
    asking(server)


@pytest.mark.parametrize(
    "arguments,code,said",
    [
        (("approve", "RUN"), 2, "say what you approve: --digest "),
        (("approve", "RUN", "--json"), 2, "say what you approve: --digest "),
        (("always", "RUN", "--days", "1", "--where", "cents"), 2, "--where is a JSON object"),
        (("always", "RUN", "--where", '{"path": "cents", "over": 1}'), 2, "say for how long"),
        (
            ("always", "RUN", "--days", "1", "--where", '{"path": "cents", "over": 9}', "--yes"),
            6,
            "the arguments are not like these",
        ),
        (
            ("always", "RUN", "--days", "1", "--where", '{"path": "cents", "over": 9}'),
            2,
            "say what you approve",
        ),
        (("approve", "999"), 3, "there is no run 999"),
        (("edit", "RUN", "--arguments", "{"), 2, "is no JSON"),
        (("edit", "RUN", "--arguments", "[]"), 2, "is a JSON object"),
        (("edit", "RUN"), 6, "say which arguments"),
        (("reassign", "RUN"), 6, "name one to 16 roles"),
        (("approve", "RUN", "9.9.t9"), 6, "'9.9.t9' does not wait for approval"),
        (("approve", "RUN", "--by", "ann"), 2, "a server goes by the key"),
    ],
)
def test_bad_input_decides_nothing(
    server: Hosted, arguments: tuple[str, ...], code: int, said: str
) -> None:
    run = asking(server)
    given = [run if one == "RUN" else one for one in arguments]
    done = server.perdure("approvals", *given)
    assert (done.code, said in done.err) == (code, True), done
    assert server.one("approvals", "show", run)["approved_by"] == []


def test_without_a_server_the_store_is_asked(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    (tmp_path / "rules.toml").write_text(RULES)
    asked = terminal.perdure("run", "agents.py:helper", "pay", "--policy", "rules.toml", "--json")
    assert asked.code == 9, asked.err
    run = asked.lines[-1]["run"]
    assert "pay be called with" in terminal.perdure("approvals", "list").out
    done = terminal.perdure("approvals", "approve", run[:8], "--yes", "--by", "ann", "--json")
    assert done.code == 0, done.err
    assert done.lines[-1]["output"] == "done: paid"
    assert terminal.ran() == ["pay 5"]
    assert "Nothing waits" in terminal.perdure("approvals", "list").out


def test_a_policy_is_put_shown_and_removed(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    with hosted(tmp_path / "server") as server:
        assert "There is no policy" in server.ok("policy", "show").out
        for text, code in ((RULES, 0), (RULES.replace('"ask"', '"maybe"'), 2)):
            rules.write_text(text)
            assert server.perdure("policy", "put", str(rules)).code == code
        assert server.one("policy", "show")["policy"]["rule"][0]["verdict"] == "ask"
        server.ok("policy", "remove")
        assert server.one("policy", "show")["version"] == ""


def test_what_nobody_sees_is_written_out() -> None:
    assert marked("a\u200bb\u202e\n") == "a<U+200B>b<U+202E><U+000A>"
    assert marked("Grüße, 世界 🙂") == "Grüße, 世界 🙂"


@pytest.mark.parametrize("said,code", [("y", 0), ("n", 1), ("", 1)])
def test_whoever_sits_at_a_terminal_sees_what_is_approved_and_is_asked(
    tmp_path: Path, said: str, code: int
) -> None:
    terminal = Terminal(tmp_path)
    (tmp_path / "rules.toml").write_text(RULES)
    asked = terminal.perdure("run", "agents.py:helper", "pay", "--policy", "rules.toml", "--json")
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        command = [sys.executable, "-m", "perdure", "approvals", "approve"]
        os.execve(sys.executable, [*command, asked.lines[-1]["run"]], terminal.environment)
    seen = b""
    while b"> " not in seen:
        seen += os.read(fd, 1024)
    assert b'"cents": 5' in seen
    os.write(fd, f"{said}\r".encode())
    with contextlib.suppress(OSError):
        while chunk := os.read(fd, 1024):
            seen += chunk
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    assert os.waitstatus_to_exitcode(status) == code, seen
    assert terminal.ran() == (["pay 5"] if code == 0 else [])
