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
from perdure.core.errors import InvalidInput
from perdure.ports.session_store import SessionStore
from perdure.testing import crash
from perdure.testing.clock import FakeClock
from perdure.testing.mutants import MUTANTS, broken, find

SCENARIOS_MAX = 300


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
    """Run the rig that has to catch a mutant. Raises `InvalidInput` if only the tests can."""
    mutant, began = find(name), time.monotonic()
    rig = _RIGS.get(mutant.rig)
    if rig is None:
        raise InvalidInput(f"{name} is caught by the tests of the {mutant.rig}: pytest -k {name}")
    return Verdict(name, mutant.rig, rig(name), time.monotonic() - began)


def convictable() -> list[str]:
    """Return the mutants that a rig can be set upon without a test runner."""
    return [name for name, mutant in MUTANTS.items() if mutant.rig in _RIGS]


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


_RIGS: Mapping[str, Callable[[str], str]] = {"store": _by_suite, "crash": _by_crash}


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
