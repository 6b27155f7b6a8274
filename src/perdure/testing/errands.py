"""An agent process that begins one errand after the other, for ever: to be killed by hand.

Each errand calls one tool of each effect class, one of them in a process of its own, and each takes
long enough to be killed in the middle. `python -m perdure.testing.errands` is started by
`perdure demo kill-me`, and ends when its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from perdure.bootstrap import Node, Runtime
from perdure.core.errors import Quarantined, Refused
from perdure.core.history import malformed
from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest
from perdure.ports.models import ModelRequest
from perdure.testing.client import Client
from perdure.testing.ledger import Ledger
from perdure.testing.mutants import break_from_environment
from perdure.worker import Agent, ToolContext, tool

AT_ONCE = 2
WORK_SECONDS = 0.15
AGENT = "runner"
LEDGER_VARIABLE = "PERDURE_LEDGER"
WORLD_VARIABLE = "PERDURE_WORLD"
STEPS = ("look", "weigh", "store", "publish", "mail")
RESULTS = {"publish": "published", "mail": "mailed"}


@cache
def world() -> Ledger:
    """Return this process's connection to the ledger that its environment names."""
    return Ledger(Path(os.environ[LEDGER_VARIABLE]), Path(os.environ[WORLD_VARIABLE]))


def _note(name: str, ctx: ToolContext) -> None:
    world().note(
        "tool",
        tool=name,
        session=str(ctx.session),
        call=ctx.call,
        attempt=ctx.attempt,
        key=ctx.key,
        arguments=json.dumps({}),
    )
    time.sleep(WORK_SECONDS)


@tool(effect="read")
def look(ctx: ToolContext) -> str:
    """Look at something: it may be done again."""
    _note("look", ctx)
    return "seen"


@tool(effect="idempotent", isolated=True)
def weigh(ctx: ToolContext) -> str:
    """Weigh something, in a process of its own: the far end honours the key."""
    _note("weigh", ctx)
    world().effect(ctx.key, honour_key=True, tool="weigh", session=str(ctx.session))
    time.sleep(WORK_SECONDS)
    return "weighed"


@tool(effect="idempotent")
def store(ctx: ToolContext) -> str:
    """Store something: the far end honours the key."""
    _note("store", ctx)
    world().effect(ctx.key, honour_key=True, tool="store", session=str(ctx.session))
    time.sleep(WORK_SECONDS)
    return "stored"


def was_published(key: str) -> str | bool:
    """Ask the far end whether something was published."""
    return RESULTS["publish"] if world().happened(key) else False


@tool(effect="once", probe=was_published)
def publish(ctx: ToolContext) -> str:
    """Publish something, once: the far end can be asked afterwards."""
    _note("publish", ctx)
    world().effect(ctx.key, honour_key=False, tool="publish", session=str(ctx.session))
    time.sleep(WORK_SECONDS)
    return RESULTS["publish"]


@tool(effect="once")
def mail(ctx: ToolContext) -> str:
    """Mail something, once: nobody but a person can know afterwards."""
    _note("mail", ctx)
    world().effect(ctx.key, honour_key=False, tool="mail", session=str(ctx.session))
    time.sleep(WORK_SECONDS)
    return RESULTS["mail"]


def play_the_model(request: ModelRequest) -> ModelReply:
    """Reply as a model would: one tool after the other, then an answer."""
    turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
    name = str(request.messages[0].content)
    world().note(
        "model",
        session=f"default/{AGENT}/{name}",
        turn=turn,
        malformed=malformed(request.messages),
    )
    if turn == len(STEPS):
        return ModelReply("done")
    return ModelReply("", (ToolRequest(f"c{turn}", STEPS[turn]),), "tool_call")


def runner() -> Agent:
    """Return the agent."""
    tools: list[Any] = [look, weigh, store, publish, mail]
    return Agent(AGENT, model=play_the_model, instructions="Run an errand.", tools=tools)


async def run_errands(url: str, first: int, last: int | None) -> None:
    """Run errand after errand, a few at once, from number `first` to `last`, or for ever."""
    numbers = count(first)
    async with Runtime(url, agents=[runner()]) as node:
        client = Client(node, world(), RESULTS)

        async def one_after_the_other() -> None:
            for number in numbers:
                if last is not None and number > last:
                    return
                await _run_errand(node, client, f"e{number}")

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_the_other())


async def _run_errand(node: Node, client: Client, name: str) -> None:
    """Run an errand to its end; a session that was set aside is released, as a person would."""
    while True:
        try:
            run = await client.send(AGENT, name, name, f"the errand {name}")
            await client.attend(run)
        except Quarantined:
            try:
                await node.release(AGENT, name)
            except Refused:
                continue
        else:
            return


def _end_with_parent() -> None:
    """End this process as soon as its standard input is closed: nobody watches it any more."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def main() -> None:
    """Run errands until this process is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--last", type=int)
    options = parser.parse_args()
    break_from_environment()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(run_errands(options.store, options.first, options.last))


if __name__ == "__main__":
    main()
