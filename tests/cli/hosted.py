"""A server with a worker beside the tests, and the command line in this process, to be quick."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from perdure import Agent, ModelReply, ModelRequest, ToolRequest, ask_human, tool, wait
from perdure.cli.main import main
from perdure.core.messages import AssistantMessage, ToolMessage
from perdure.ports.models import ModelError, OnText
from tests.cli.terminal import Finished
from tests.client.served import KEY, a_server, agents_on

SECONDS_MAX = 30


@tool(effect="read")
def stock(item: str) -> int:
    """How many are there?"""
    return 3


@tool(effect="once")
def pay(cents: int, to: str) -> str:
    """Pay."""
    return f"{cents} to {to}"


def play(request: ModelRequest) -> ModelReply | str:
    """Do what the message says: look into the stock, ask a person, sleep, fail, or echo."""
    said = [m for m in request.messages if not isinstance(m, AssistantMessage)]
    latest, text = said[-1], str(said[-1].content)
    if isinstance(latest, ToolMessage):
        return f"I got {text}."
    if "stock" in text:
        return ModelReply(tool_calls=(ToolRequest("c1", "stock", {"item": "tea"}),))
    if "pay" in text:
        payment = {"cents": 5, "to": "ann\u202e"}
        return ModelReply(tool_calls=(ToolRequest("c1", "pay", payment),))
    if "ask" in text:
        return ModelReply(tool_calls=(ToolRequest("c1", "ask_human", {"question": "Shall I?"}),))
    if "sleep" in text:
        return ModelReply(tool_calls=(ToolRequest("c1", "wait", {"seconds": 3600}),))
    if "fail" in text:
        raise ModelError("no such model", status=404)
    return f"You said {text}."


class Writer:
    """Writes what `play` replies piece by piece."""

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the whole reply."""
        played = play(request)
        if isinstance(played, ModelReply):
            return played
        for word in re.findall(r"\S+\s*", played):
            on_text(word)
        return ModelReply(content=played)


helper = Agent(
    "helper", model=Writer(), tools=[stock, pay, ask_human, wait], instructions="You help."
)


class Hosted:
    """A server at `url`, and commands that are told of it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def perdure(self, *arguments: str, input: str = "", key: str | None = KEY) -> Finished:
        """Run `perdure` to its end, with this server in its environment."""
        environment = {"PERDURE_URL": self.url, "PERDURE_KEY": key, "NO_COLOR": "1"}
        done = CliRunner().invoke(main, arguments, input=input, env=environment)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Finished(done.exit_code, done.stdout, done.stderr)

    def ok(self, *arguments: str, **more: Any) -> Finished:
        """Run a command that must succeed."""
        done = self.perdure(*arguments, **more)
        assert done.code == 0, done
        return done

    def json(self, *arguments: str, **more: Any) -> list[dict[str, Any]]:
        """Return the lines that a command prints for programs."""
        return self.ok(*arguments, "--json", **more).lines

    def one(self, *arguments: str, **more: Any) -> dict[str, Any]:
        """Return the only line that a command prints for programs."""
        [line] = self.json(*arguments, **more)
        return line


@contextmanager
def hosted(folder: Path) -> Iterator[Hosted]:
    """Run a server and a worker for `helper` in a thread, until the tests are done with it."""
    up, urls = threading.Event(), list[str]()
    leaving: list[Callable[[], Any]] = []

    async def serve() -> None:
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        async with a_server(folder) as served, agents_on(served, helper):
            urls.append(served.url)
            leaving.append(lambda: loop.call_soon_threadsafe(done.set))
            up.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(SECONDS_MAX), "the server does not start"
        yield Hosted(urls[0])
    finally:
        for leave in leaving:
            leave()
        thread.join(SECONDS_MAX)
