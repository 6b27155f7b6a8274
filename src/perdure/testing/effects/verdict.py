"""What one run shows of a tool: the far end's counts and the log, held against what it declares.

The far end was counted after each death, before anything could recover, and the log was read then:
so it is known what a probe should have said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from perdure.core import events as e
from perdure.core.agent import ToolSpec
from perdure.testing.effects.life import Life

_ENDINGS = (e.RunCompleted, e.RunFailed, e.RunCancelled, e.DecisionRequested)
_SETTLED = (e.ToolCallSucceeded, e.ToolCallFailed, e.ToolCallUnknown)


class Seen(NamedTuple):
    """What was seen when a life was over: the log, and what the far end had done by then."""

    life: Life
    events: tuple[e.Event, ...]
    done: Counter[str]


class Observed(NamedTuple):
    """One run of the call: how the far end was before, and after each life.

    `expected` is how many effects the call has when nobody disturbs it.
    """

    spec: ToolSpec
    expected: int
    before: Counter[str]
    seen: Sequence[Seen]

    @property
    def log(self) -> tuple[e.Event, ...]:
        """Return the log as it is in the end."""
        return self.seen[-1].events

    @property
    def calls(self) -> int:
        """Return how often the function was called."""
        return sum(one.life.called for one in self.seen)

    @property
    def in_doubt(self) -> bool:
        """Say whether the log shows that the outcome was unknown."""
        return any(isinstance(one, e.ToolCallUnknown) for one in self.log)

    def effects(self, after: Seen | None = None) -> int:
        """Return how many effects there were after a life, or in the end."""
        return (((after or self.seen[-1]).done) - self.before).total()


def violations(run: Observed) -> list[str]:
    """Return what the run shows against the tool; nothing, if it is what it declares."""
    if run.seen[-1].life.stuck or not any(isinstance(one, _ENDINGS) for one in run.log):
        return ["the call was still under way when its process had to be ended: give it more time"]
    return _RULES[run.spec.effect](run)


def _read(run: Observed) -> list[str]:
    after = run.seen[-1].done
    if after == run.before:
        return _success(run)
    more, less = (after - run.before).total(), (run.before - after).total()
    said = f"it declares `read`, and changed the far end ({more} more, {less} less)"
    return [f"{said}: declare `idempotent` or `once`"]


def _idempotent(run: Observed) -> list[str]:
    effects = run.effects()
    if effects > run.expected:
        said = f"{_times(run.calls)} with one key had {effects} effects, not {run.expected}"
        return [f"{said}: hand ctx.key to the far end, or declare `once`"]
    return _whole(run) + _success(run)


def _once(run: Observed) -> list[str]:
    found = [*_sent_again(run), *_hidden(run), *_probe(run)]
    settled = next((one for one in reversed(run.log) if isinstance(one, _SETTLED)), None)
    known = isinstance(settled, e.ToolCallSucceeded)
    if run.effects() > run.expected:
        found.append(f"one call had {run.effects()} effects, not {run.expected}")
    elif known and not found:
        found += _whole(run)
    return found if known or run.in_doubt else found + _success(run)


_RULES: Mapping[str, Callable[[Observed], list[str]]] = {
    "read": _read,
    "idempotent": _idempotent,
    "once": _once,
}


def _whole(run: Observed) -> list[str]:
    effects = run.effects()
    if effects == run.expected:
        return []
    said = f"recorded as done after {_times(run.calls)}, with {effects} of {run.expected} effects"
    return [f"{said}: make them one step of the far end, or repeat all of them"]


def _success(run: Observed) -> list[str]:
    for one in run.log:
        if isinstance(one, e.ToolCallFailed):
            return [f"the call failed ({one.kind}): {one.content}"]
    return []


def _sent_again(run: Observed) -> list[str]:
    """Find calls of the function beyond those before which the probe had said: not yet."""
    allowed = 1 + sum(isinstance(one, e.ToolCallReopened) and one.by == "probe" for one in run.log)
    if run.calls <= allowed:
        return []
    return [f"{_times(run.calls)}, where its declaration allows {allowed}"]


def _hidden(run: Observed) -> list[str]:
    """Find a call that had begun, had no outcome when its process died, and never was in doubt."""
    for one in run.seen[:-1]:
        last = next((each for each in reversed(one.events) if _is_of_call(each)), None)
        later = run.log[len(one.events) :]
        if isinstance(last, e.ToolCallBegun) and not any(
            isinstance(each, e.ToolCallUnknown) for each in later
        ):
            return [f"nobody was told that attempt {last.attempt} is in doubt"]
    return []


def _is_of_call(event: e.Event) -> bool:
    return isinstance(event, (e.ToolCallBegun, e.ToolCallReopened, *_SETTLED))


def _probe(run: Observed) -> list[str]:
    """Find what the probe said that was not so when the process had died."""
    found = []
    for position, said in enumerate(run.log):
        if getattr(said, "by", "") != "probe":
            continue
        # Since this death the call was in doubt: nothing but the probe has run.
        death = [one for one in run.seen if len(one.events) <= position][-1:]
        effects = run.effects(death[0]) if death else 0
        there = f"the far end had {effects} of {run.expected} effects"
        if isinstance(said, e.ToolCallReopened) and effects:
            found.append(f"the probe said that it did not happen, and {there}")
        elif isinstance(said, e.ToolCallSucceeded) and effects != run.expected:
            found.append(f"the probe said that it happened, and {there}")
    return found


def _times(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls} calls"
