"""Kill the process around a call, over and over, and see whether the tool is what it declares.

The call is made undisturbed first, which tells where it can be killed and what it does at the far
end. Then every run is killed at one of these places, every third one again while it recovers, and
brought to its end; the far end is counted from here, between the lives.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from perdure.core import events as e
from perdure.core.errors import InvalidInput
from perdure.testing.effects.life import (
    LINE,
    SESSION,
    TOOL_STEP,
    AnyTool,
    Attempt,
    Life,
    Reached,
    live,
)
from perdure.testing.effects.report import Effects, Place, Violation
from perdure.testing.effects.verdict import Observed, Seen, violations
from perdure.testing.faults import STEP, Fault, parse
from perdure.testing.witness import look
from perdure.worker import Tool

KILLS = 200
RUNS_PER_KILL_MAX = 2
"""A planned kill may miss, as steps are not always as many; then the next one is made."""
LIFE_SECONDS_MAX = 30.0
UNDISTURBED = "undisturbed"
AFTER_THE_TOOL = (Fault("tool.after", 1),)

Arguments = Mapping[str, Any]
FarEnd = Callable[[], Iterable[Any] | Mapping[Any, int]]
Plan = tuple[Fault, ...]


def check_effects(
    tool: Tool[..., Any],
    *,
    arguments: Mapping[str, Any] | Callable[[int], Mapping[str, Any]],
    far_end: Callable[[], Iterable[Any] | Mapping[Any, int]],
    kills: int = KILLS,
    seed: int = 1,
    credentials: Mapping[str, str] | None = None,
    life_seconds_max: float = LIFE_SECONDS_MAX,
    at: str | None = None,
) -> Effects:
    """Kill the process around a tool's call `kills` times; return what the tool does of its class.

    Each time an agent makes the call in a new process, with its own store and key. It is killed by
    SIGKILL at a place that `seed` chooses: a fault point, a step of the event loop, a line of the
    tool or its probe, from the moment the model asks for the call until it is told the result, or
    while another process recovers. Then it recovers, until the run ends or a person has to decide.

    `far_end` returns what has been done so far: an item for each effect, or a mapping of items to
    how often each was done. It is called here, between the lives, and has to wait until nothing is
    in flight any more. `arguments` are those of the call, or a function of the number of the run,
    from 0, for a tool of which the second call with the same ones does nothing. `credentials` are
    those of the agent. No process lives longer than `life_seconds_max`. `at` repeats one run of a
    report.

    The processes are forked from this one: what the tool is given in memory it has, and what it
    changes in memory is gone. Raises `InvalidInput` for a tool that cannot be checked, or a call
    that fails undisturbed or does nothing that `far_end` sees.
    """
    made = arguments if callable(arguments) else lambda number: arguments
    _check_given(tool, made(0), kills, life_seconds_max)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perdure-effects-") as work:
        runs = _Runs(tool, made, far_end, dict(credentials or {}), life_seconds_max, Path(work))
        undisturbed = runs.run(())
        runs.learn(undisturbed)
        if at is not None:
            runs.judge(parse(at))
        elif not runs.report.wrong:
            runs.kill(undisturbed.seen[0].life, kills, seed)
    return runs.report.finished(tool, seed, time.monotonic() - began)


def _check_given(tool: Any, arguments: Arguments, kills: int, life_seconds_max: float) -> None:
    """Raise `InvalidInput` for what cannot be checked, before a process is made of it."""
    if not isinstance(tool, Tool):
        raise InvalidInput(f"check_effects takes a tool, and {tool!r} is none: decorate it")
    if tool.spec.builtin is not None:
        raise InvalidInput(f"{tool.spec.name!r} is carried out by the runtime: it has no far end")
    if kills < 1:
        raise InvalidInput(f"kills is 1 or more, not {kills!r}")
    if not 0 < life_seconds_max < float("inf"):
        raise InvalidInput(f"life_seconds_max is a number of seconds, not {life_seconds_max!r}")
    tool.arguments(dict(arguments))
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidInput("check_effects forks: call it from a test that is not async")


class _Report:
    """The counts so far."""

    def __init__(self) -> None:
        self.wrong: list[Violation] = []
        self.kills = 0
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, place: str, plan: Plan, run: Observed) -> None:
        """Count a run, and what it shows against the tool."""
        found = violations(run)
        kills = sum(one.life.killed_at is not None for one in run.seen)
        self.kills += kills
        self._counts[place].update(
            runs=1,
            kills=kills,
            calls=run.calls,
            effects=run.effects(),
            in_doubt=int(run.in_doubt),
            wrong=int(bool(found)),
        )
        if found:
            at = ",".join(f"{fault.site}:{fault.hit}" for fault in plan)
            self.wrong.append(Violation(place, at, "; ".join(found)))

    def finished(self, tool: AnyTool, seed: int, seconds: float) -> Effects:
        """Return the report."""
        return Effects(
            tool=tool.spec.name,
            effect=tool.spec.effect,
            seed=seed,
            kills=self.kills,
            places=tuple(Place(place, **counts) for place, counts in sorted(self._counts.items())),
            violations=tuple(self.wrong),
            seconds=seconds,
        )


class _Runs:
    """Makes the call, in as many lives as it takes, and watches the far end meanwhile."""

    def __init__(
        self,
        tool: AnyTool,
        arguments: Callable[[int], Arguments],
        far_end: FarEnd,
        credentials: Mapping[str, str],
        life_seconds_max: float,
        work: Path,
    ) -> None:
        self.report = _Report()
        self._tool = tool
        self._arguments = arguments
        self._far_end = far_end
        self._credentials = credentials
        self._life_seconds_max = life_seconds_max
        self._work = work
        self._numbers = count()
        self._expected = 0

    def run(self, plan: Plan) -> Observed:
        """Make the call, killed at each fault of the plan, and bring it to its end."""
        number = next(self._numbers)
        store = self._work / f"{number}.db"
        attempt = Attempt(
            self._tool,
            self._arguments(number),
            self._credentials,
            store,
            self._life_seconds_max,
        )
        before, seen = self._count(), []
        for fault in (*plan, None):
            life = live(attempt, fault)
            log = asyncio.run(look(store)).get(str(SESSION))
            seen.append(Seen(life, tuple(log.events) if log is not None else (), self._count()))
            if life.killed_at is None:
                break
        for file in self._work.iterdir():
            file.unlink()
        return Observed(self._tool.spec, self._expected, before, seen)

    def learn(self, undisturbed: Observed) -> None:
        """Take what the call does when nobody disturbs it as what it is to do.

        Raises `InvalidInput` if that is a failure, or nothing although it should be something.
        """
        spec, name = self._tool.spec, self._tool.spec.name
        self._expected = undisturbed.effects()
        run = undisturbed._replace(expected=self._expected)
        if not any(isinstance(one, e.ToolCallSucceeded) for one in run.log):
            why = "; ".join(violations(run)) or "it has no result"
            raise InvalidInput(f"{name!r} does not even succeed undisturbed: {why}")
        if spec.effect != "read" and self._expected == 0:
            raise InvalidInput(
                f"{name!r} declares `{spec.effect}`, and far_end() was the same before and after a "
                "call that nobody disturbed: have it return what the tool does, or declare `read`"
            )
        self.report.add(UNDISTURBED, (), run)

    def judge(self, plan: Plan) -> Life:
        """Make one run, killed as planned, and count what it shows; return its last life."""
        run = self.run(plan)
        deaths = [one.life.killed_at for one in run.seen if one.life.killed_at is not None]
        again = "recovering: " if len(deaths) > 1 else ""
        self.report.add(again + (deaths or ["(missed)"])[-1], plan, run)
        return run.seen[-1].life

    def kill(self, undisturbed: Life, kills: int, seed: int) -> None:
        """Make runs until so many were killed; the first shows where a recovery can be killed."""
        first = _points(undisturbed.reached, "model.after", "model.before")
        recovering = self.judge(AFTER_THE_TOOL)
        again = _points(recovering.reached, None, "model.before")
        for plan in islice(_plans(first, again, seed), RUNS_PER_KILL_MAX * kills):
            if self.report.kills >= kills:
                break
            self.judge(plan[: kills - self.report.kills])

    def _count(self) -> Counter[str]:
        """Return what the far end has done, by the names of the items."""
        found = self._far_end()
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise InvalidInput(
                "far_end returns an item for each effect, or a mapping of items to counts, not "
                f"{found!r}"
            )
        if isinstance(found, Mapping):
            return Counter({str(item): times for item, times in found.items()})
        return Counter(map(str, found))


class _Point(NamedTuple):
    """A place to die, and how often that line had been run, or that site reached, before."""

    fault: Fault
    before: int


def _points(reached: Sequence[Reached], after: str | None, until: str) -> list[_Point]:
    """Return the places to die, of those that a life has reached, from one site to the next.

    Without `after` they begin with the life.
    """
    points: list[_Point] = []
    hits: Counter[str] = Counter()
    visits: Counter[Reached] = Counter()
    inside = after is None
    for one in reached:
        hits[one.site] += 1
        inside = inside or one.site == after
        if inside:
            points.append(_Point(Fault(one.site, hits[one.site]), visits[one]))
            visits[one] += one.site not in (STEP, TOOL_STEP)
        if inside and one.site == until:
            break
    return points


def _plans(first: Sequence[_Point], again: Sequence[_Point], seed: int) -> Iterator[Plan]:
    """Yield where to kill, without end: two runs that die once, then one that dies twice."""
    alone, recovering = _mixed(first, seed), _mixed(again, seed)
    # From the other end: what dies twice is to die first where not much has died before.
    in_tool = [one for one in alone[::-1] if one.site == LINE or one.site.startswith("tool.")]
    for number in count():
        yield (alone[number % len(alone)],)
        if number % 2:
            yield in_tool[number // 2 % len(in_tool)], recovering[number // 2 % len(recovering)]


def _mixed(points: Iterable[_Point], seed: int) -> list[Fault]:
    """Return the points in an order drawn by chance, with lines, named points and steps in turn.

    A short check has to begin with what shows most: where the tool runs, and lines that were not
    run before. Each has its place by itself: steps are not always as many, and that is to change
    nothing for the others.
    """

    def drawn(point: _Point) -> tuple[int, bool, float]:
        chance = random.Random(f"{seed} {point.fault}").random()
        in_tool = point.fault.site == TOOL_STEP or point.fault.site.startswith("tool.")
        return point.before, not in_tool, chance

    lines: list[Fault] = []
    named: list[Fault] = []
    steps: list[Fault] = []
    kinds = {LINE: lines, STEP: steps, TOOL_STEP: steps}
    for fault, _ in sorted(points, key=drawn):
        kinds.get(fault.site, named).append(fault)
    turns = zip_longest(lines[::2], named, lines[1::2], steps)
    return [one for turn in turns for one in turn if one is not None]
