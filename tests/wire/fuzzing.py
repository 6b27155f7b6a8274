"""Feeds both ends of a connection what atheris comes up with: `fuzzing.py CORPUS [OPTION...]`.

An input is one byte that says which end it is for, one that says how it is cut, and what is said.
Whatever comes out that is not documented is raised, and atheris keeps the input. A line is printed
for each kind of thing that was caused for the first time. Options are those of libFuzzer.
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import atheris

SRC = Path(__file__).parents[2] / "src"
bare = sys.modules["perdure"] = ModuleType("perdure")
bare.__path__ = [str(SRC / "perdure")]  # the wire needs nothing that the package brings
with atheris.instrument_imports(include=["perdure.wire", "perdure.core"]):
    from perdure.wire import results
    from perdure.wire import table as t
    from perdure.wire.frames import BadFrame, decode
    from perdure.wire.message_cache import NATIVE_RUNS_MAX
    from perdure.wire.registration import FEATURES, Registration
    from perdure.wire.server import (
        CHANNELS_MAX,
        AgentJoins,
        MessageAsked,
        PortAsked,
        ServerSide,
        WorkerJoins,
    )
    from perdure.wire.worker import Joined, WorkerSide

CLOSE_CODES = (1002, 1007, 1009)
MEMORY_MIB_MAX = 400
INPUTS_LOOKED_AFTER = 1_000
OURS = Registration(worker_id="w1", tools=(), features=FEATURES)
BEAT = '[null,"1","phoenix","heartbeat",{}]'
STRANGE: list[Any] = [
    None, True, 0, -1, 2**53, 1e308, "", "x", "\ud7ff", "nul\x00", [], {}, [[]], {"": None},
    "a" * 300, "1" * 30, [None] * 5, {"worker_id": "w"}, 7.5, False,
]  # fmt: skip
seen: set[str] = set()
inputs = itertools.count(1)


class Server:
    """A server's end: it lets everybody in, and answers whatever it is asked."""

    def __init__(self, serves: Any) -> None:
        self.side = ServerSide(serves)

    def hear(self, text: str | bytes) -> None:
        """Take a message; raises `BadFrame` and nothing else."""
        for thing in self.side.feed(text):
            note(thing)
            said: list[str] = []
            if isinstance(thing, WorkerJoins | AgentJoins):
                said = self.side.accept_join(thing)
            elif isinstance(thing, PortAsked | MessageAsked):
                said = [*self.side.reply(thing.ticket), *self.side.refuse(thing.ticket, "no")]
            elif isinstance(thing, results.Result):
                note(results.model_report(thing, "1.1.m1"))
                note(results.tool_report(thing, "1.1.t0", 1))
                note(results.probe_report(thing, "1.1.t0", 1))
            elif isinstance(thing, str):
                said = [thing]
            for frame in said:
                decode(frame)
        assert len(self.side._channels) <= CHANNELS_MAX


class Worker:
    """A worker's end: it asks to join, and brings a result once it may."""

    def __init__(self) -> None:
        self.side = WorkerSide(OURS)
        self.side.join()

    def hear(self, text: str | bytes) -> None:
        """Take a message; raises `BadFrame` and nothing else."""
        for thing in self.side.feed(text):
            note(thing)
            if isinstance(thing, str):
                decode(thing)
            elif isinstance(thing, Joined):
                self.side.result(results.Result(task_id="T1", status="ok"))
        assert len(self.side._cache._runs) <= NATIVE_RUNS_MAX


ENDS = (lambda: Server("worker"), lambda: Server("agent"), Worker)
bystander = ServerSide("worker")


def note(thing: object) -> None:
    """Tell of a kind of thing that was not caused before."""
    name = type(thing).__name__
    if name not in seen:
        seen.add(name)
        print(f"caused {name}", flush=True)


def fuzz(data: bytes) -> None:
    """Say an input to one end of a new connection; what is no frame is the last thing it hears."""
    if len(data) < 2:
        return
    end, cut = ENDS[data[0] % len(ENDS)](), data[1]
    lines = data[2:].split(b"\n")
    if cut > 127:
        lines = [data[n : n + cut - 127] for n in range(2, len(data), cut - 127)]
    try:
        for line in lines:
            end.hear(line if cut & 1 else line.decode("utf-8", "surrogateescape"))
    except BadFrame as bad:
        note(bad)
        if bad.close_code not in CLOSE_CODES:
            raise
    assert len(bystander.feed(BEAT)) == 1
    if next(inputs) % INPUTS_LOOKED_AFTER == 0 and resident_mib() > MEMORY_MIB_MAX:
        raise MemoryError(f"{resident_mib()} MiB are in use; the limit is {MEMORY_MIB_MAX}")


def resident_mib() -> int:
    """Return how much memory this process has now.

    Its peak, which libFuzzer would look at, begins with that of the process that started it.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 2**20


def mutate(data: bytes, size_max: int, seed: int) -> bytes:
    """Return an input that differs: in the JSON of a line, or in bytes."""
    chance = random.Random(seed)
    lines = data[2:].split(b"\n")
    at = chance.randrange(len(lines))
    try:
        frame = json.loads(lines[at])
    except (ValueError, RecursionError):
        frame = None
    if not isinstance(frame, list) or chance.random() < 0.3:
        return atheris.Mutate(data, size_max)
    lines[at] = json.dumps(changed(frame, chance)).encode("utf-8", "replace")
    if chance.random() < 0.2:
        lines.insert(chance.randrange(len(lines)), lines[at])
    return (data[:2] + b"\n".join(lines))[:size_max]


def changed(node: Any, chance: random.Random) -> Any:
    """Return JSON that differs in one place."""
    if not isinstance(node, list | dict) or not node or chance.random() < 0.1:
        return chance.choice([*STRANGE, [node], {"x": node}])
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = chance.choice(keys)
    copy = node.copy()
    if chance.random() < 0.1:
        del copy[key]
    elif isinstance(copy, dict) and chance.random() < 0.1:
        copy[chance.choice(WORDS)] = chance.choice(STRANGE)
    else:
        copy[key] = changed(copy[key], chance)
    return copy


WORDS = sorted(
    {field for rules in t.HEARS.values() for rule in rules.values()
     for field in rule.payload.__struct_fields__}
    | {field for rule in t.PUSHES.values() for field in rule.payload.__struct_fields__}
    | set(Registration.__struct_fields__)
)  # fmt: skip

atheris.Setup(sys.argv, fuzz, custom_mutator=mutate)
atheris.Fuzz()
