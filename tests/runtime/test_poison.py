"""Poison: what one session brings about stays its own, and ends in words a person understands.

Beside every poison three healthy sessions run on the same node: each must complete, and its model
must be asked exactly as often as without the poison.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perdure.adapters.models import asks, call, says
from perdure.core.agent import Limits
from perdure.core.codec import Record, link
from perdure.core.limits import STRIKES_MAX
from perdure.core.messages import ModelReply, ToolRequest
from perdure.core.runs import TERMINAL
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import InboxEntry
from perdure.worker import Agent, tool
from tests.runtime.test_node import finished
from tests.runtime.world import World, last, turn

HEALTHY = 3
STEPS_MAX = 6


def nested(levels: int) -> Any:
    """Return lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


class Endless(dict[str, Any]):
    """A value that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self["me"] = self


class Base(BaseException):
    """Not even an `Exception`."""


def raising(error: BaseException) -> Callable[[ModelRequest], Any]:
    """Return a model that raises."""

    def model(request: ModelRequest) -> Any:
        raise error

    return model


def replying(*replies: Any) -> Callable[[ModelRequest], Any]:
    """Return a model that gives one reply after the other, and the last one for ever."""
    return lambda request: replies[min(turn(request), len(replies) - 1)]


@tool(effect="read")
async def fails() -> str:
    """Fail, always."""
    raise RuntimeError("no luck today")


@tool(effect="read")
async def gives_deep() -> Any:
    """Give what no JSON can hold."""
    return nested(100_000)


@tool(effect="read")
async def gives_itself() -> Any:
    """Give what has no end."""
    return Endless()


@tool(effect="read")
async def gives_much() -> str:
    """Give more than is kept."""
    return "x" * 3_000_000


@tool(effect="read")
async def exits() -> str:
    """Try to end the process politely."""
    raise SystemExit(3)


@tool(effect="read")
async def look(n: int = 0) -> str:
    """Look."""
    return f"seen {n}"


class Poison(NamedTuple):
    """What a model does, and how its run ends: the status, and words of the failure or answer."""

    name: str
    model: Callable[[ModelRequest], Any]
    status: str
    says: str = ""


def told(name: str) -> Callable[[ModelRequest], Any]:
    """Return a model that calls a tool once and repeats what it was told."""
    return lambda request: asks(call(name)) if turn(request) == 0 else says(str(last(request)))


POISONS = [
    Poison("the model raises", raising(RuntimeError("boom")), "failed", "boom"),
    Poison("the model recurses", raising(RecursionError("too deep")), "failed", "too deep"),
    Poison(
        "the model runs out of memory", raising(MemoryError("none left")), "failed", "none left"
    ),
    Poison("a reply that is none", replying(object()), "failed", "object"),
    Poison("a reply that holds itself", replying(ModelReply(Endless())), "failed"),  # type: ignore[arg-type]
    Poison("a reply nested too deep", replying(ModelReply(nested(100_000))), "failed"),  # type: ignore[arg-type]
    Poison("a reply of 5 MB", replying("x" * 5_000_000), "failed", "4194304"),
    Poison("a reply with half a character", replying("\ud800"), "failed", "surrogates"),
    Poison(
        "arguments nested too deep",
        replying(ModelReply("", (ToolRequest("1", "look", {"n": nested(500)}),)), "ok"),
        "failed",
        "nested deeper",
    ),  # type: ignore[dict-item]
    Poison(
        "an endless loop of calls",
        replying(asks(call("look", n=1))),
        "failed",
        "all of its 6 steps",
    ),
    Poison("a tool that always raises", replying(asks(call("fails"))), "failed", "all of its 6"),
    Poison("a result nested too deep", told("gives_deep"), "completed", "result"),
    Poison("a result that holds itself", told("gives_itself"), "completed", "result"),
    Poison("a result of 3 MB", told("gives_much"), "completed", "1048576"),
    Poison("a tool that raises SystemExit", told("exits"), "completed", "SystemExit"),
]


class Node:
    """A node with healthy sessions beside a sick one; counts what the models are asked."""

    def __init__(self, model: Callable[[ModelRequest], Any]) -> None:
        self.asked: Counter[str] = Counter()
        tools = [fails, gives_deep, gives_itself, gives_much, exits, look]
        self.world = World(
            Agent("sick", model=model, tools=tools, limits=Limits(steps_max=STEPS_MAX)),
            Agent("healthy", model=self.reply, tools=[look]),
        )

    async def reply(self, request: ModelRequest) -> Any:
        """Look twice and answer."""
        name = str(request.messages[0].content)
        self.asked[name] += 1
        return asks(call("look", n=turn(request))) if turn(request) < 2 else says(f"{name}: fine")

    async def start(self) -> None:
        """Start a life."""
        self.node = await self.world.node()

    async def send_healthy(self) -> None:
        """Give the node its healthy work."""
        names = [f"h{n}" for n in range(HEALTHY)]
        self.healthy = [await self.node.send("healthy", name, session=name) for name in names]

    async def check_healthy(self) -> None:
        """All completed, and no model call was made twice."""
        for run in self.healthy:
            assert await finished(self.world, run) == f"{run.session.key}: fine"
            row = await self.node.row(run.id)
            assert row.status == "completed", row
        assert self.asked == {f"h{n}": 3 for n in range(HEALTHY)}
        self.node.check()


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.name)
async def test_a_poison_ends_its_run_and_harms_nobody(poison: Poison) -> None:
    here = Node(poison.model)
    await here.start()
    sick = await here.node.send("sick", "go", session="s")
    await here.send_healthy()
    for _ in range(30):
        await here.world.pass_time(5)
        if (await sick.row()).status in TERMINAL:
            break
    row = await sick.row()
    assert row.status == poison.status, row
    said = str(await here.node.answer_of(row)) if row.status == "completed" else str(row.message)
    assert poison.says in said
    await here.check_healthy()
    await here.node.stop()


def cut(records: list[Record]) -> None:
    """Take away the last event but one."""
    del records[-2]


def replace(body: bytes) -> Callable[[list[Record]], None]:
    """Return what replaces the last event by another one, with a good hash."""

    def change(records: list[Record]) -> None:
        before = records[-2].hash
        records[-1] = Record(records[-1].seq, body, link(before, body))

    return change


BAD_LOGS: dict[str, tuple[Callable[[list[Record]], None], str]] = {
    "a lost event": (cut, "event 4 is missing"),
    "no JSON": (replace(b"\xff\x00"), "event"),
    "an unknown event": (replace(b'{"type":"run_exploded","at":0}'), "run_exploded"),
    "an event of a newer version": (
        replace(b'{"type":"run_completed.9","at":0}'),
        "run_completed.9",
    ),
    "an event that cannot come here": (
        replace(b'{"type":"retry_fell_due","at":0,"call":"1.1.m1"}'),
        "retry_fell_due",
    ),
    "nested too deep": (replace(b"[" * 100_000), "event"),
}


@pytest.mark.parametrize("name", BAD_LOGS)
async def test_a_log_that_cannot_be_folded_isolates_its_session(name: str) -> None:
    change, words = BAD_LOGS[name]
    here = Node(lambda request: "fine")
    await here.start()
    sick = await here.node.send("sick", "go", session="s")
    await here.world.pass_time(2)
    await here.node.stop()
    change(here.world.store._sessions[sick.session].log)
    here.world.store._sessions[sick.session].snapshot = None
    here.world.store._sessions[sick.session].snapshot_version = 0
    await here.start()
    await here.node.send("sick", "more", session="s")
    await here.send_healthy()
    await here.world.pass_time(5)
    loaded = await here.world.store.load(sick.session)
    assert loaded is not None
    assert words in str(loaded.quarantine)
    await here.check_healthy()
    await here.node.stop()


@pytest.mark.parametrize("command", [b"\xff", b"{}", b'{"type":"explode"}', b"[" * 100_000])
async def test_a_command_that_cannot_be_decoded_isolates_its_session(command: bytes) -> None:
    here = Node(lambda request: "fine")
    await here.start()
    sick = await here.node.send("sick", "go", session="s")
    await here.world.pass_time(5)
    await here.world.store.accept(InboxEntry("bad", sick.session, command, 0))
    await here.send_healthy()
    await here.world.pass_time(20)
    loaded = await here.world.store.load(sick.session)
    assert loaded is not None
    assert loaded.quarantine
    await here.check_healthy()
    await here.node.stop()


# ----------------------------------------------------------------------------- real processes

PROGRAM = """
import asyncio, json, os, signal, sys
from perdure import Agent, ModelReply, Runtime, ToolRequest, tool
from perdure.core.errors import PerdureError

HOW = sys.argv[1]

@tool(effect="read", isolated=HOW == "isolated")
def deadly() -> str:
    "Kill the process."
    os.kill(os.getpid(), signal.SIGKILL)

@tool(effect="read")
def look() -> str:
    "Look."
    return "seen"

def sick(request):
    step = len(request.messages) // 2
    return ModelReply(tool_calls=(ToolRequest("1", "deadly"),)) if step == 0 else "survived"

def healthy(request):
    step = len(request.messages) // 2
    with open("ledger", "a") as ledger:
        ledger.write(f"{request.messages[0].content} {step}\\n")
    return ModelReply(tool_calls=(ToolRequest("1", "look"),)) if step < 3 else "fine"

AGENTS = [Agent("healthy", model=healthy, tools=[look]), Agent("sick", model=sick, tools=[deadly])]

async def main():
    found = {}
    async with Runtime("sqlite:///store.db", agents=AGENTS) as node:
        runs = {n: await node.send("healthy", n, idempotency_key=n) for n in ("a", "b", "c")}
        for name, run in runs.items():
            found[name] = await run.result()
        run = await node.send("sick", "go", session="s", idempotency_key="sick")
        try:
            found["sick"] = await run.result()
        except PerdureError as error:
            found["sick"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "deaths", "words"),
    [
        ("isolated", 0, "survived"),
        ("in the process", STRIKES_MAX, "Quarantined: "),
    ],
)
def test_a_tool_that_kills_its_process(tmp_path: Path, how: str, deaths: int, words: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    codes = []
    for _ in range(STRIKES_MAX + 2):
        life = subprocess.run(
            [sys.executable, str(program), how],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        codes.append(life.returncode)
        if life.returncode != -signal.SIGKILL:
            break
    assert codes == [-signal.SIGKILL] * deaths + [0], life.stderr
    found = json.loads(life.stdout)
    assert words in found.pop("sick")
    assert found == dict.fromkeys("abc", "fine")
    asked = Counter((tmp_path / "ledger").read_text().splitlines())
    assert asked == {f"{name} {step}": 1 for name in "abc" for step in range(4)}
