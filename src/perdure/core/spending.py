"""What events do to a purse: reserved before a call, settled after it, never forgotten.

What a call took is settled where it is known. Where it may have been billed and nobody knows, the
worst case is settled and marked as doubtful: a purse may be too empty, never too full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core.budget import Purse, Reserve, raised
from perdure.core.state import State


def spend(purse: Purse | None, event: e.Event) -> Purse | None:
    """Return the purse after an event; a run without a budget has none."""
    if isinstance(event, e.RunStarted):
        return None if event.budget is None else Purse(event.budget)
    handler = _HANDLERS.get(type(event))
    return purse if purse is None or handler is None else handler(purse, event)


def with_purse(state: State, event: e.Event) -> State:
    """Return the state with what `event` does to the purse of its run."""
    run = state.run
    if run is None or (run.purse is None and not isinstance(event, e.RunStarted)):
        return state
    purse = spend(run.purse, event)
    return state if purse is run.purse else replace(state, run=replace(run, purse=purse))


def _reserve(purse: Purse, event: e.ModelCallIntended | e.CompactionIntended) -> Purse:
    if event.reserved is None:
        return purse
    return replace(purse, reserved={**purse.reserved, event.call: event.reserved})


def _settle(purse: Purse, event: e.ModelReplied | e.ContextCompacted) -> Purse:
    """Settle what a call took; a model that does not say took the worst case."""
    reserve, usage = purse.reserved.get(event.call), event.usage
    tokens = usage.input_tokens + usage.output_tokens
    if reserve is not None and (not tokens or _lacks_cost(reserve, event.cost_micros)):
        return _doubt(purse, event.call)
    return replace(
        purse,
        tokens=purse.tokens + tokens,
        cost_micros=purse.cost_micros + (event.cost_micros or 0),
        reserved=_without(purse, event.call),
    )


def _lacks_cost(reserve: Reserve, cost_micros: int | None) -> bool:
    return reserve.cost_micros is not None and cost_micros is None


def _fail(purse: Purse, event: e.ModelCallFailed | e.CompactionFailed) -> Purse:
    if event.doubtful:
        return _doubt(purse, event.call)
    return replace(purse, reserved=_without(purse, event.call))


def _doubt(purse: Purse, call: str) -> Purse:
    """Settle the worst case of a call that may have been billed."""
    reserve = purse.reserved.get(call)
    if reserve is None:
        return purse
    micros = reserve.cost_micros or 0
    return replace(
        purse,
        tokens=purse.tokens + reserve.tokens,
        cost_micros=purse.cost_micros + micros,
        doubtful_tokens=purse.doubtful_tokens + reserve.tokens,
        doubtful_micros=purse.doubtful_micros + micros,
        reserved=_without(purse, call),
    )


def _resend(purse: Purse, event: e.ModelCallResent) -> Purse:
    reserve = purse.reserved.get(event.call)
    if reserve is None:
        return purse
    return replace(_doubt(purse, event.call), reserved={**purse.reserved, event.call: reserve})


def _without(purse: Purse, call: str) -> dict[str, Reserve]:
    return {name: one for name, one in purse.reserved.items() if name != call}


def _count(purse: Purse, event: e.ToolCallIntended) -> Purse:
    return replace(purse, calls={**purse.calls, event.name: purse.calls.get(event.name, 0) + 1})


def _exceed(purse: Purse, event: e.BudgetExceeded) -> Purse:
    return replace(purse, breaches=purse.breaches + 1)


def _raise(purse: Purse, event: e.BudgetRaised) -> Purse:
    more = raised(purse.allotted, event.tokens, event.cost_micros, event.wall_ms, event.calls)
    return replace(purse, allotted=more)


def _end(purse: Purse, event: e.Event) -> Purse:
    """Settle what the run leaves open: it may have been billed."""
    for call in purse.reserved:
        purse = _doubt(purse, call)
    return purse


_HANDLERS: Mapping[type[e.Event], Callable[[Purse, Any], Purse]] = {
    e.ModelCallIntended: _reserve,
    e.CompactionIntended: _reserve,
    e.ModelReplied: _settle,
    e.ContextCompacted: _settle,
    e.ModelCallFailed: _fail,
    e.CompactionFailed: _fail,
    e.ModelCallResent: _resend,
    e.ToolCallIntended: _count,
    e.BudgetExceeded: _exceed,
    e.BudgetRaised: _raise,
    e.RunCompleted: _end,
    e.RunFailed: _end,
    e.RunCancelled: _end,
}
