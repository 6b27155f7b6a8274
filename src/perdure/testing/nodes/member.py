"""A node process that runs errands on a store which it shares with others.

An errand calls a tool of each effect class; what they do happens in the ledger, which is never
killed. Whatever becomes of the node, its errands are sent again under their keys until they ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from perdure.bootstrap import Node, Runtime
from perdure.core.errors import PerdureError, Quarantined, Refused
from perdure.core.history import malformed
from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest
from perdure.ports.models import ModelRequest
from perdure.runtime.settings import NodeSettings
from perdure.testing.client import Client
from perdure.testing.ledger import Ledger
from perdure.testing.mutants import break_engine
from perdure.testing.mutation.patches import Patches
from perdure.testing.nodes.recorder import TRACE_SUFFIX, Recorder
from perdure.worker import Agent, ToolContext, tool

AGENT = "runner"
STEPS = ("look", "keep", "publish", "mail")
RESULTS = {"publish": "published", "mail": "mailed"}
AGAIN_SECONDS = 0.1
FAILED = 4
STALL_SIGNAL = signal.SIGUSR1


class Life(msgspec.Struct, frozen=True, tag=True):
    """A node process: its name, its store, where it notes what it does, and its errands.

    It begins `at_once` errands at a time. `stall_ms` is how long its event loop stands still at
    each SIGUSR1.
    """

    name: str
    store: str
    out: str
    ledger: str
    world: str
    errands: tuple[str, ...] = ()
    lease_ms: int = 1_000
    scan_interval_ms: int = 500
    drain_ms: int = 10_000
    at_once: int = 2
    work_ms: int = 10
    think_ms: int = 0
    stall_ms: int = 0
    mutant: str = ""
    settings: dict[str, Any] = {}


class World:
    """The far ends of the errands, as this process sees them."""

    def __init__(self, life: Life) -> None:
        self.ledger = Ledger(Path(life.ledger), Path(life.world))
        self._work_seconds = life.work_ms / 1000
        self._think_seconds = life.think_ms / 1000

    def agent(self) -> Agent:
        """Return the agent, with one tool of each effect class."""

        @tool(effect="read")
        def look(ctx: ToolContext) -> str:
            """Look at something: it may be done again."""
            self._work("look", ctx)
            return "seen"

        @tool(effect="idempotent")
        def keep(ctx: ToolContext) -> str:
            """Keep something: the far end honours the key."""
            self._work("keep", ctx, honour_key=True)
            return "kept"

        def was_published(key: str) -> str | bool:
            return RESULTS["publish"] if self.ledger.happened(key) else False

        @tool(effect="once", probe=was_published)
        def publish(ctx: ToolContext) -> str:
            """Publish something, once: the far end can be asked afterwards."""
            self._work("publish", ctx, honour_key=False)
            return RESULTS["publish"]

        @tool(effect="once")
        def mail(ctx: ToolContext) -> str:
            """Mail something, once: nobody but a person can know afterwards."""
            self._work("mail", ctx, honour_key=False)
            return RESULTS["mail"]

        tools: list[Any] = [look, keep, publish, mail]
        return Agent(AGENT, model=self._play_the_model, instructions="Run an errand.", tools=tools)

    def _work(self, name: str, ctx: ToolContext, honour_key: bool | None = None) -> None:
        self.ledger.note(
            "tool",
            tool=name,
            session=str(ctx.session),
            call=ctx.call,
            attempt=ctx.attempt,
            key=ctx.key,
            arguments="{}",
        )
        time.sleep(self._work_seconds)
        if honour_key is not None:
            self.ledger.effect(ctx.key, honour_key=honour_key, tool=name, session=str(ctx.session))
            time.sleep(self._work_seconds)

    async def _play_the_model(self, request: ModelRequest) -> ModelReply:
        """Reply as a model would: one tool after the other, then an answer."""
        turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
        self.ledger.note(
            "model",
            session=f"default/{AGENT}/{request.messages[0].content}",
            turn=turn,
            malformed=malformed(request.messages),
        )
        await asyncio.sleep(self._think_seconds)
        if turn == len(STEPS):
            return ModelReply("done")
        return ModelReply("", (ToolRequest(f"c{turn}", STEPS[turn]),), "tool_call")


async def live(life: Life) -> int:
    """Be a node until SIGTERM, and then drain; return the exit code.

    A node whose store failed for good ends with `FAILED`: whoever watches it starts it again.
    """
    logging.basicConfig(level=logging.DEBUG, format=f"%(relativeCreated)d {life.name} %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if life.mutant:
        break_engine(life.mutant)
    _record(life)
    world, told = World(life), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    # Not through the loop: it has to stand still in the middle of whatever it does.
    signal.signal(STALL_SIGNAL, lambda *_: time.sleep(life.stall_ms / 1000))
    settings = NodeSettings(
        **{
            "lease_ms": life.lease_ms,
            "scan_interval_ms": life.scan_interval_ms,
            "drain_ms": life.drain_ms,
            **life.settings,
        }
    )
    async with Runtime(life.store, agents=[world.agent()], settings=settings) as node:
        client = Client(node, world.ledger, RESULTS)
        waiting = iter(life.errands)
        errands = [asyncio.ensure_future(_run(node, client, waiting)) for _ in range(life.at_once)]
        while not told.is_set() and node.failure is None:
            await asyncio.wait([asyncio.ensure_future(told.wait())], timeout=AGAIN_SECONDS)
        for errand in errands:
            errand.cancel()
        await asyncio.gather(*errands, return_exceptions=True)
        if node.failure is not None:
            sys.stderr.write(f"{life.name}: {node.failure!r}\n")
    return FAILED if node.failure is not None else 0


def _record(life: Life) -> None:
    trace = Path(life.out) / f"{life.name}-{os.getpid()}{TRACE_SUFFIX}"

    def wrap(original: Any) -> Any:
        async def opening(*more: Any, **named: Any) -> Any:
            return Recorder(await original(*more, **named), life.name, trace)

        return opening

    Patches().name("perdure.bootstrap", "open_store", wrap)


async def _run(node: Node, client: Client, errands: Iterator[str]) -> None:
    """See one errand after the other to its end."""
    for name in errands:
        await _see_to(node, client, name)


async def _see_to(node: Node, client: Client, name: str) -> None:
    """See an errand to its end; a session that was set aside is released, as a person would."""
    while node.failure is None:
        try:
            run = await client.send(AGENT, name, name, f"the errand {name}")
            await client.attend(run)
        except Quarantined:
            with suppress(Refused):
                await node.release(AGENT, name)
        except PerdureError as error:
            sys.stderr.write(f"{name}: {error!r}\n")
        else:
            return
        await asyncio.sleep(AGAIN_SECONDS)
