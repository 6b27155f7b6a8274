"""`perdure chat`: through a pipe, and on a terminal with its Ctrl-C."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from perdure.cli.chat import Page
from tests.cli.hosted import Hosted, hosted
from tests.client.served import KEY

SECONDS_MAX = 30
END = b"\x04"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Give one server to all tests of this file."""
    with hosted(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ([("awaits",), ("write", "Hel"), ("write", "lo"), ("reply", "Hello")], "Hello\n"),
        ([("awaits",), ("write", "Hel"), ("reply", "Hello\nyou")], "Hello\nyou\n"),
        ([("awaits",), ("reply", "Hello")], "Hello\n"),
        ([("awaits",), ("write", "Well, "), ("reply", "Hello")], "Well, \nHello\n"),
        ([("awaits",), ("write", "Hel"), ("line", "no"), ("reply", "Hello")], "Hel\nno\nHello\n"),
        ([("write", "Hel"), ("line", "x: 3"), ("awaits",), ("reply", "Hello")], "x: 3\nHello\n"),
        ([("awaits",), ("reply", ""), ("line", "x()")], "x()\n"),
        ([("awaits",), ("reply", {"n": 3})], '{"n":3}\n'),
        ([("awaits",), ("write", "\x1b[31m"), ("reply", "\x1b[31m")], "\\x1b[31m\n"),
    ],
)
def test_what_is_told_is_shown_once(
    told: list[tuple[Any, ...]], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pieces may be missing, taken back, or come before the request that they belong to."""
    page = Page()
    for method, *arguments in told:
        getattr(page, method)(*arguments)
    assert capsys.readouterr().out == shown


class TestThroughAPipe:
    """A line is a message, or the answer to what was asked."""

    def test_a_message_is_answered(self, server: Hosted) -> None:
        assert server.ok("chat", "helper", input="hello\n\n").out == "You said hello.\n"

    def test_all_is_said_in_one_session(self, server: Hosted) -> None:
        server.ok("chat", "helper", "--session", "one", input="hello\nand hello\n")
        runs = server.json("runs", "list", "--agent", "helper", "--session", "one")
        assert [run["output"] for run in runs] == ["You said and hello.", "You said hello."]

    def test_a_call_and_its_result_take_a_line_each(self, server: Hosted) -> None:
        told = server.ok("chat", "helper", input="the stock?\n").out
        assert told == "  stock(item=tea)\n  stock: 3\nI got 3.\n"

    def test_a_question_is_answered_by_the_next_line(self, server: Hosted) -> None:
        told = server.ok("chat", "helper", input="ask me\nyes, do\nhello\n").out
        assert told == "Shall I?\nI got yes, do.\nYou said hello.\n"

    def test_a_question_without_an_answer_is_asked_again_in_that_session(
        self, server: Hosted
    ) -> None:
        left = server.perdure("chat", "helper", "--session", "later", input="ask me\n")
        assert (left.code, "perdure runs reply" in left.out) == (9, True)
        assert "Shall I?\n" in left.out
        again = server.ok("chat", "helper", "--session", "later", input="now\n").out
        assert again == "Shall I?\nI got now.\n"

    def test_a_failure_is_told_and_the_talk_goes_on(self, server: Hosted) -> None:
        told = server.ok("chat", "helper", input="fail\nhello\n").out
        assert told == "The run is failed: no such model\nYou said hello.\n"

    def test_control_characters_do_not_reach_the_terminal(self, server: Hosted) -> None:
        told = server.ok("chat", "helper", input="\x1b[31mred\n").out
        assert "\x1b" not in told

    def test_an_agent_that_is_not_there_gets_a_line(self, server: Hosted) -> None:
        done = server.perdure("chat", "nobody", input="hello\n")
        assert (done.code, "there is no agent 'nobody'" in done.err) == (3, True)


# A process of its own opens the terminal: this one has threads, and must not be forked. It hears
# Ctrl-C also where this one was started to ignore it, as in the background of a shell.
ON_A_TERMINAL = """
import os, pty, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
status = pty.spawn([sys.executable, "-m", "perdure", "chat", sys.argv[1]])
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Screen:
    """A terminal with a chat on it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._keys, self._output = process.stdin, process.stdout
        self.seen = ""

    def type(self, keys: bytes) -> None:
        """Press keys."""
        self._keys.write(keys)
        self._keys.flush()

    def interrupt(self) -> None:
        """Press Ctrl-C, and Enter: a signal just before a read began is seen when it ends."""
        self.type(b"\x03\n")

    def until(self, said: str) -> None:
        """Wait until something is on the screen below what was awaited before."""
        while said not in self.seen:
            came = os.read(self._output.fileno(), 1024)
            assert came, f"{said!r} is not in {self.seen!r}"
            self.seen += re.sub(r"\x1b\[[?0-9;]*\w", "", came.decode())
        self.seen = self.seen.partition(said)[2]


@contextmanager
def on_a_terminal(server: Hosted, agent: str, code: int) -> Iterator[Screen]:
    """Chat in a process of its own, which has to end with this code."""
    with subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, agent],
        env={**os.environ, "PERDURE_URL": server.url, "PERDURE_KEY": KEY},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            screen = Screen(process)
            screen.until("Ctrl-D leaves")
            screen.until("> ")
            yield screen
            screen.until("go on with: perdure chat")
            rest, _ = process.communicate(timeout=SECONDS_MAX)
        finally:
            process.terminate()
    assert process.returncode == code, rest
    assert b"Traceback" not in rest


class TestOnATerminal:
    """What keys do."""

    def test_the_end_of_the_input_leaves(self, server: Hosted) -> None:
        with on_a_terminal(server, "helper", 0) as screen:
            screen.type(b"hello\n")
            screen.until("You said hello.")
            screen.until("> ")
            screen.type(END)

    def test_an_interrupt_cancels_the_run_and_the_talk_goes_on(self, server: Hosted) -> None:
        with on_a_terminal(server, "helper", 0) as screen:
            screen.type(b"sleep\n")
            screen.until("until 2")
            screen.interrupt()
            screen.until("The run is cancelled: interrupted in a chat")
            screen.until("> ")
            screen.type(b"hello\n")
            screen.until("You said ")
            screen.until("> ")
            screen.type(END)
        assert server.json("runs", "list", "--status", "cancelled")

    def test_a_question_can_be_interrupted(self, server: Hosted) -> None:
        with on_a_terminal(server, "helper", 0) as screen:
            screen.type(b"ask me\n")
            screen.until("? ")
            screen.interrupt()
            screen.until("no answer: cancelling run")
            screen.until("Ctrl-C again leaves")
            screen.until("The run is cancelled")
            screen.until("> ")
            screen.type(END)

    def test_two_interrupts_leave(self, server: Hosted) -> None:
        with on_a_terminal(server, "helper", 130) as screen:
            screen.interrupt()
            screen.until("Ctrl-C again leaves")
            screen.until("> ")
            screen.interrupt()

    def test_the_interrupt_after_the_one_that_cancelled_leaves(self, server: Hosted) -> None:
        with on_a_terminal(server, "helper", 130) as screen:
            screen.type(b"sleep\n")
            screen.until("until 2")
            screen.interrupt()
            screen.until("Ctrl-C again leaves")
            screen.until("The run is cancelled: interrupted in a chat")
            screen.until("> ")
            screen.interrupt()

    def test_a_message_after_an_interrupt_makes_the_next_one_the_first(
        self, server: Hosted
    ) -> None:
        with on_a_terminal(server, "helper", 0) as screen:
            screen.type(b"sleep\n")
            screen.until("until 2")
            screen.interrupt()
            screen.until("The run is cancelled")
            screen.until("> ")
            screen.type(b"hello\n")
            screen.until("You said ")
            screen.until("> ")
            screen.interrupt()
            screen.until("Ctrl-C again leaves")
            screen.until("> ")
            screen.type(END)

    def test_a_worker_that_is_missing_is_told(self, server: Hosted) -> None:
        server.perdure("agents", "create", "lonely", "--system-prompt", "x", "--model", "a:b")
        with on_a_terminal(server, "lonely", 0) as screen:
            screen.type(b"hello\n")
            screen.until("waits for a worker")
            screen.interrupt()
            screen.until("The run is cancelled")
            screen.until("> ")
            screen.type(END)
