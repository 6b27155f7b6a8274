"""The command line as a user meets it: real processes in a directory of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

SECONDS_MAX = 60

AGENT = '''
"""Agents for tests of the command line; a function plays the model."""

import os
import time
from pathlib import Path

from perdure import Agent, ModelError, ModelReply, ToolRequest, ask_human, tool, wait
from perdure.core.messages import AssistantMessage


@tool(effect="read")
def count_files() -> int:
    """Count the files here."""
    print("counting, says the tool")
    with open("ran.txt", "a") as file:
        file.write("count_files\\n")
    return len(list(Path.cwd().glob("*.py")))


@tool(effect="once")
def pay(cents: int) -> str:
    """Pay, slowly."""
    with open("ran.txt", "a") as file:
        file.write(f"pay {cents}\\n")
    if os.environ.get("HANG"):
        print("paying", flush=True)
        time.sleep(60)
    return "paid"


def turn(request):
    return sum(isinstance(message, AssistantMessage) for message in request.messages)


def play(request):
    text = str(request.messages[0].content)
    n = turn(request)
    if n == 0 and "count" in text:
        return ModelReply(tool_calls=(ToolRequest("c1", "count_files"),), finish="tool_call")
    if n == 0 and "pay" in text:
        return ModelReply(tool_calls=(ToolRequest("c1", "pay", {"cents": 5}),), finish="tool_call")
    if n == 0 and "ask" in text:
        question = {"question": "Shall I?"}
        return ModelReply(tool_calls=(ToolRequest("c1", "ask_human", question),))
    if n == 0 and "sleep" in text:
        return ModelReply(tool_calls=(ToolRequest("c1", "wait", {"seconds": 3600}),))
    if "fail" in text and not Path("mended").exists():
        raise ModelError("no such model", status=404)
    return f"done: {request.messages[-1].content}"


helper = Agent("helper", model=play, tools=[count_files, pay, ask_human, wait])
keyless = Agent("keyless", model="anthropic:claude-sonnet-5")
'''


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return what `--json` printed."""
        return [json.loads(line) for line in self.out.splitlines()]


class Terminal:
    """A directory with an agent file, and commands run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.forged = False
        (directory / "agents.py").write_text(AGENT)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.endswith("_API_KEY") and name != "HANG"
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start `perdure` with these arguments."""
        return subprocess.Popen(
            [sys.executable, "-m", "perdure", *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def perdure(self, *arguments: str, **environment: str) -> Finished:
        """Run `perdure` to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=SECONDS_MAX)
        return Finished(process.returncode, out, err)

    def run(self, message: str, *more: str) -> Finished:
        """Send the helper a message."""
        return self.perdure("run", "agents.py:helper", message, "--json", *more)

    def kill_when(self, said: str, *arguments: str, **environment: str) -> None:
        """Start a command, and SIGKILL it when it has printed this."""
        process = self.start(*arguments, **environment)
        assert process.stdout is not None
        for line in process.stdout:
            if said in line:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    def ran(self) -> list[str]:
        """Return what the tools did."""
        file = self.directory / "ran.txt"
        return file.read_text().split("\n")[:-1] if file.exists() else []
