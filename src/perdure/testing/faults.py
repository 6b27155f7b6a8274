"""Fault plans: let a process die, or hold still to be killed, at a named place.

A plan is written `site:n` or `site:n:action` and handed to a child process in the environment
variable `PERDURE_FAULTS`, several separated by commas. `kill` sends the process SIGKILL; `hold`
writes one line `reached SITE N` to the file descriptor in `PERDURE_FAULTS_FD` and stops there until
somebody kills it. Besides the sites of the product there are your own: names that begin with
`user.` can be reached by your tools through `perdure.ports.faults.reach`. With `count_steps` each
step of the event loop is a site as well, `loop.step`: a process can then be killed at every await.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

from perdure.core.errors import InvalidInput
from perdure.ports import faults

Action = Literal["kill", "hold"]
PLAN_VARIABLE = "PERDURE_FAULTS"
FD_VARIABLE = "PERDURE_FAULTS_FD"
STEP = "loop.step"
"""The site of the event loop's steps: whatever an await lets run is one."""


class Fault(NamedTuple):
    """What happens at the `hit`-th time (from 1) that `site` is reached."""

    site: str
    hit: int
    action: Action = "kill"

    def __str__(self) -> str:
        return f"{self.site}:{self.hit}:{self.action}"


def parse(plan: str) -> tuple[Fault, ...]:
    """Return the faults of a plan. Raises `InvalidInput` for an unknown site or action."""
    found = []
    for part in filter(None, plan.split(",")):
        site, _, rest = part.partition(":")
        hit, _, action = rest.partition(":")
        if site not in (*faults.SITES, STEP) and not site.startswith("user."):
            raise InvalidInput(f"{site!r} is no fault point; they are: {', '.join(faults.SITES)}")
        if not hit.isdigit() or int(hit) < 1 or action not in ("", "kill", "hold"):
            raise InvalidInput(f"a fault is written SITE:N or SITE:N:kill|hold, not {part!r}")
        found.append(Fault(site, int(hit), cast(Action, action or "kill")))
    return tuple(found)


class FaultPlan:
    """Counts how often each site is reached, and does what is planned there."""

    def __init__(self, planned: tuple[Fault, ...] = (), fd: int | None = None) -> None:
        self.hits: Counter[str] = Counter()
        self._planned = {(fault.site, fault.hit): fault.action for fault in planned}
        self._fd = fd

    def install(self) -> FaultPlan:
        """Make this the plan of the process."""
        faults.install(self.reach)
        return self

    def count_steps(self) -> FaultPlan:
        """Make every step of this process's event loops a site: for a process that is to die."""
        run = asyncio.Handle._run

        def counted(handle: asyncio.Handle) -> None:
            self.reach(STEP)
            run(handle)

        asyncio.Handle._run = counted  # type: ignore[method-assign, assignment]
        return self

    def reach(self, site: str) -> None:
        """Note that `site` was reached, and act if that was planned."""
        self.hits[site] += 1
        action = self._planned.get((site, self.hits[site]))
        if action is None:
            return
        if action == "hold" and self._fd is not None:
            os.write(self._fd, f"reached {site} {self.hits[site]}\n".encode())
            while True:
                signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)


def install_from_environment(environment: Mapping[str, str] = os.environ) -> FaultPlan | None:
    """Install the plan that a parent process put into the environment, if there is one."""
    plan = environment.get(PLAN_VARIABLE)
    if plan is None:
        return None
    fd = environment.get(FD_VARIABLE)
    return FaultPlan(parse(plan), int(fd) if fd else None).install()
