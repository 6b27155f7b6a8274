"""Is a broken engine found out? Runs the rig that has to catch a mutant.

`python -m perdure.testing.convict MUTANT` exits with 1 when the mutant was caught, as every rig
does that finds something wrong, and with 0 when it got away.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from perdure.adapters.stores.memory import MemoryStore
from perdure.core import commands as c
from perdure.core import session
from perdure.core.ids import SessionId
from perdure.core.messages import ModelReply, ToolRequest
from perdure.core.session import Context
from perdure.core.state import EMPTY
from perdure.ports.session_store import SessionStore
from perdure.testing import crash
from perdure.testing.clock import FakeClock
from perdure.testing.mutants import Rig, broken, find
from perdure.testing.nodes.evidence import hunt
from perdure.testing.simulation import simulate
from perdure.worker import Agent, tool

SCENARIOS_MAX = 300
SEEDS_MAX = 2_000
STORIES_MAX = 1_000


class Verdict(NamedTuple):
    """What a rig says of a mutant: `evidence` is empty when the mutant got away."""

    mutant: str
    rig: str
    evidence: str
    seconds: float

    @property
    def caught(self) -> bool:
        """Say whether the rig found something wrong."""
        return bool(self.evidence)


def convict(name: str) -> Verdict:
    """Run the rig that has to catch a mutant. Raises `InvalidInput` for one that nobody knows."""
    mutant, began = find(name), time.monotonic()
    evidence = _RIGS[mutant.rig](name)
    return Verdict(name, mutant.rig, evidence, time.monotonic() - began)


@asynccontextmanager
async def _memory(clock: FakeClock) -> AsyncIterator[SessionStore]:
    yield MemoryStore(clock)


def _by_suite(name: str) -> str:
    from perdure.testing.conformance.check import broken_promises

    with broken(name):
        found = asyncio.run(broken_promises(_memory))
    return found[0] if found else ""


def _by_crash(name: str) -> str:
    found = crash.survey(SCENARIOS_MAX, name)
    return found.bad[0] if found.bad else ""


def _by_simulation(name: str) -> str:
    found = simulate(1, SEEDS_MAX, processes=crash.JOBS, mutant=name)
    return found.failures[0].reproduce if found.failures else ""


def _by_rules(name: str) -> str:
    """Let a call be lost once, and tell of its first attempt afterwards."""
    with broken(name):
        reply = ModelReply(tool_calls=(ToolRequest("c", "look"),))
        context = Context(SessionId("t", "a", "s"), _looker().definition, now=0)
        commands = (
            c.SendMessage(id="run", content="go"),
            c.ReportReply(call="1.1.m1", reply=reply),
            c.ReportToolLost(call="1.1.t0", attempt=1, reason="its worker died"),
            c.ReportToolResult(call="1.1.t0", attempt=1, ok=True, content="late"),
        )
        state, decision = EMPTY, None
        for command in commands:
            decision = session.decide(state, command, context)
            state = decision.state
    late = decision is not None and decision.refusal is None
    return "the outcome of attempt 1 settled attempt 2" if late else ""


def _by_governance(name: str) -> str:
    from perdure.testing.governance import play

    found = play(STORIES_MAX, name)
    return found.wrong[0] if found.wrong else ""


def _by_budgets(name: str) -> str:
    from perdure.testing.budgets import play

    found = play(STORIES_MAX, name)
    return found.wrong[0] if found.wrong else ""


def _looker() -> Agent:
    @tool(effect="read")
    def look() -> str:
        """Look."""
        return "seen"

    return Agent("a", model=lambda request: "", instructions="Look.", tools=[look])


def _by_nodes(name: str) -> str:
    return asyncio.run(hunt(name)).evidence


_RIGS: Mapping[Rig, Callable[[str], str]] = {
    "store": _by_suite,
    "crash": _by_crash,
    "simulation": _by_simulation,
    "core": _by_rules,
    "governance": _by_governance,
    "budget": _by_budgets,
    "leader": _by_nodes,
    "matrix": _by_nodes,
}


def main() -> int:
    """Convict the mutant that the command line names."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    verdict = convict(name)
    if not verdict.caught:
        sys.stdout.write(f"{name} got away from the {verdict.rig} rig\n")
        return 0
    sys.stdout.write(f"FAIL  {verdict.evidence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
