"""One life of a process that makes the call: forked, watched line by line, killed where planned.

Besides the fault points of the product and the steps of the event loop, every line that the tool
and its probe run is a place to die: a sync function has no awaits, and its worst moment is between
the line that acts and the one that returns.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import select
import signal
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple, NoReturn

import perdure
from perdure.adapters.models.scripted import ScriptedModel, asks, call, says
from perdure.bootstrap import SQLITE_PREFIX, Runtime
from perdure.core.errors import PerdureError
from perdure.core.ids import SessionId
from perdure.ports import faults
from perdure.testing.faults import STEP, Fault, FaultPlan
from perdure.worker import Agent, Tool

AnyTool = Tool[..., Any]
SESSION = SessionId("default", "caller", "call")
LINE = "user.line"
"""The site of the lines of a tool and its probe, and of their returns."""
TOOL_STEP = "user.step"
"""The site of the event loop's steps while the tool runs, which are as many in every life."""
LINES_MAX = 10_000
"""How many lines of one life are places to die: a tool may loop for long."""
LINGER_SECONDS_MAX = 5
"""How long what a life has started may outlive it."""
_NOT_THE_USERS = (
    "<",
    str(Path(perdure.__file__).parent) + os.sep,
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""What the names of files begin with whose lines are no places to die: libraries, and ourselves."""


class Attempt(NamedTuple):
    """What every life of a scenario does: one call of one tool, in the same store."""

    tool: AnyTool
    arguments: Mapping[str, Any]
    credentials: Mapping[str, str]
    store: Path
    seconds_max: float


class Reached(NamedTuple):
    """A site that was reached; `place` is the file and the line, for a line."""

    site: str
    place: str


class Life(NamedTuple):
    """A process that is no more: where it was killed, and the sites that it had reached.

    `killed_at` is None if it ended by itself; `stuck` says that it had to be ended.
    """

    killed_at: str | None
    stuck: bool
    reached: tuple[Reached, ...]
    called: int
    """How often the tool's function was called, or about to be."""


def live(attempt: Attempt, fault: Fault | None = None) -> Life:
    """Make the call in a process of its own, or go on with it; die at the fault, if there is one.

    Returns when that process and whatever it had started are gone. Raises `PerdureError` if it
    failed in another way.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    with attempt.store.with_suffix(".trace").open("w+b") as trace:
        with warnings.catch_warnings():
            # Newer Pythons warn of threads: those of the test hold no lock that a life needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _be_alive(attempt, fault, trace, writer)
        os.close(writer)
        try:
            said = _last_words(reader, attempt)
        finally:
            os.close(reader)
            _, status = os.waitpid(pid, 0)
        trace.seek(0)
        reached = tuple(Reached(*line.split("\t")) for line in trace.read().decode().splitlines())
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL, -signal.SIGALRM):
        raise PerdureError(f"a process that called {attempt.tool.spec.name!r} failed:\n{said}")
    killed = code == -signal.SIGKILL and fault is not None
    calls = sum(one.site == "tool.before" for one in reached)
    return Life(
        killed_at=_place(fault, reached) if killed and fault is not None else None,
        stuck=code == -signal.SIGALRM,
        reached=reached,
        called=calls - (killed and fault is not None and fault.site == "tool.before"),
    )


def _place(fault: Fault, reached: Iterable[Reached]) -> str:
    """Return where a life was killed, in words."""
    hits, last = 0, "the start"
    for site, place in reached:
        hits += site == fault.site
        if hits == fault.hit:
            return place or (f"a step after {last}" if site in (STEP, TOOL_STEP) else site)
        # The store has a thread of its own: what it reaches comes at any time between two steps.
        if site in faults.SITES and not site.startswith("store."):
            last = site
    return fault.site


def _last_words(reader: int, attempt: Attempt) -> str:
    """Return what a life wrote to stderr, which whatever it starts holds open as well."""
    limit = attempt.seconds_max + LINGER_SECONDS_MAX
    until, said = time.monotonic() + limit, bytearray()
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        chunk = os.read(reader, 65_536)
        if not chunk:
            return said.decode(errors="replace")
        said += chunk
    raise PerdureError(
        f"something that {attempt.tool.spec.name!r} has started was still there after {limit:g} s: "
        "whatever a tool starts has to end with its process, or to close its stderr"
    )


def _be_alive(attempt: Attempt, fault: Fault | None, trace: IO[bytes], errors: int) -> NoReturn:
    """Make the call in this process, which does not come back from it."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, attempt.seconds_max)
        os.dup2(errors, 2)
        os.close(errors)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        tool = attempt.tool
        plan = _Plan(() if fault is None else (fault,), trace.fileno(), _file(tool))
        plan.install()
        plan.count_steps()
        tool.run = plan.watched(tool.run)  # type: ignore[method-assign]
        tool.probe = plan.watched(tool.probe)  # type: ignore[method-assign]
        asyncio.run(_call(attempt))
        code = 0
    except BaseException:  # noqa: BLE001  whoever forked is told
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _file(tool: AnyTool) -> str:
    """Return the file of a tool's function, which may be part of an installed package."""
    code = getattr(inspect.unwrap(tool.function), "__code__", None)
    return code.co_filename if code is not None else ""


async def _call(attempt: Attempt) -> None:
    """Have an agent make the call, until its run ends or a person has to decide."""
    name = attempt.tool.spec.name
    agent = Agent(
        SESSION.agent,
        model=ScriptedModel(asks(call(name, **attempt.arguments)), says("done")),
        tools=[attempt.tool],
        credentials=attempt.credentials,
        grants=attempt.tool.spec.capabilities,
    )
    async with Runtime(f"{SQLITE_PREFIX}{attempt.store}", agents=[agent]) as runtime:
        run = await runtime.send(
            SESSION.agent, "Call it.", session=SESSION.key, idempotency_key="the one call"
        )
        async for one in run.events():
            if one.type == "decision_requested":
                return


class _Plan(FaultPlan):
    """A plan that writes down what is reached, before it kills."""

    def __init__(self, planned: tuple[Fault, ...], trace: int, file: str) -> None:
        super().__init__(planned)
        self._trace = trace
        self._file = file
        self._in_tool = False

    def reach(self, site: str, place: str = "") -> None:
        """Note that `site` was reached, and die if that was planned."""
        if site in ("tool.before", "tool.after"):
            self._in_tool = site == "tool.before"
        elif site == STEP and self._in_tool:
            site = TOOL_STEP
        os.write(self._trace, f"{site}\t{place}\n".encode())
        super().reach(site)

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, of which every line is a site; it may be async."""

        def run(*args: Any) -> Any:
            with self._lines():
                value = function(*args)
            return finish(value) if inspect.isawaitable(value) else value

        async def finish(value: Any) -> Any:
            with self._lines():
                return await value

        return run

    @contextmanager
    def _lines(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._frame)
        try:
            yield
        finally:
            sys.settrace(before)

    def _frame(self, frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        is_the_users = file == self._file or not file.startswith(_NOT_THE_USERS)
        return self._line if is_the_users and self.hits[LINE] < LINES_MAX else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event in ("line", "return") and self.hits[LINE] < LINES_MAX:
            self.reach(LINE, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return self._line
