"""`perdure budget`: on a server, and in a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.hosted import Hosted, hosted
from tests.cli.terminal import Terminal


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Give one server to all tests of this file."""
    with hosted(tmp_path_factory.mktemp("server")) as server:
        yield server


def short(server: Hosted) -> str:
    """Return a run that waits for a call of a tool."""
    done = server.perdure(
        "send", "helper", "stock", "--wait", "--json", "--budget", "calls:stock=0"
    )
    assert done.code == 9, done
    return str(done.lines[0]["id"])


def test_what_is_left_is_shown_and_more_is_given(server: Hosted) -> None:
    run = short(server)
    assert "stock: 0, of 0" in server.ok("budget", "show", run).out
    assert "stock: 0, of 0" in server.ok("runs", "show", run).out
    listed = server.ok("approvals", "list", "--all").out
    assert "there is no call of stock left" in listed
    raised = server.ok("budget", "raise", run, "--calls", "stock=2", "--reason", "go on").out
    assert "I got 3" in raised
    assert server.one("budget", "show", run)["left"]["calls"] == {"stock": 1}
    story = server.ok("runs", "events", run).out
    assert "budget_exceeded" in story
    assert "budget_raised" in story


def test_no_more_is_given(server: Hosted) -> None:
    run = short(server)
    assert "gave no more: enough" in server.ok("budget", "deny", run, "--reason", "enough").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "999"), 3, "there is no run 999"),
        (("raise", "RUN", "--calls", "stock"), 2, "--calls is TOOL=N"),
        (("raise", "RUN", "--cost", "1,5"), 2, "at most six decimals"),
        (("raise", "RUN", "--wall", "soon"), 2, "a time is a number"),
        (("raise", "RUN", "--tokens", "5"), 6, "no limit of tokens"),
        (("raise", "RUN", "--calls", "stock=1", "--call", "9.9.t9"), 6, "does not wait"),
        (("raise", "RUN", "--by", "ann"), 2, "a server goes by the key"),
    ],
)
def test_bad_input_raises_nothing(
    server: Hosted, arguments: tuple[str, ...], code: int, said: str
) -> None:
    run = short(server)
    done = server.perdure("budget", *(run if one == "RUN" else one for one in arguments))
    assert (done.code, said in done.err) == (code, True), done
    assert server.one("budget", "show", run)["allotted"]["calls"] == {"stock": 0}


def test_a_budget_is_said_with_the_message_or_refused(server: Hosted) -> None:
    done = server.perdure("send", "helper", "hi", "--budget", "tokns=5")
    assert (done.code, "--budget is tokens=N" in done.err) == (2, True)
    sent = ("--budget", "tokens=5", "--budget", "wall=2h", "--budget", "cost=0.5")
    run = server.perdure("send", "helper", "hi", *sent).out.strip()
    allotted = server.one("budget", "show", run)["allotted"]
    assert (allotted["tokens"], allotted["wall_ms"], allotted["cost"]) == (5, 7_200_000, "0.500000")
    without = server.perdure("send", "helper", "hi").out.strip()
    assert server.perdure("budget", "show", without).code == 3


def test_without_a_server_the_store_is_asked(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    asked = terminal.perdure("run", "agents.py:helper", "pay", "--budget", "calls:pay=0", "--json")
    assert asked.code == 9, asked.err
    run = asked.lines[-1]["run"]
    assert "pay: 0, of 0" in terminal.perdure("runs", "show", run).out
    done = terminal.perdure("budget", "raise", run[:8], "--calls", "pay=1", "--by", "ann", "--json")
    assert done.code == 0, done.err
    assert done.lines[-1]["output"] == "done: paid"
    assert "pay: 1, of 1" in terminal.perdure("budget", "show", run).out
