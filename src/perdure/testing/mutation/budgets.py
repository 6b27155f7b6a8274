"""A broken purse: what is not reserved, not settled, counted twice, or free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from perdure.core import events as e
from perdure.core.budget import Purse
from perdure.testing.mutation.patches import Patches

SPENDING = "perdure.core.spending"
RESERVING = "perdure.core.reserving"
Spend = Callable[[Purse | None, e.Event], Purse | None]


def _spends(patches: Patches, kinds: Any, broken: Callable[[Purse, e.Event, Spend], Purse]) -> None:
    """Have these events do something else to a purse."""

    def wrap(original: Spend) -> Spend:
        def spend(purse: Purse | None, event: e.Event) -> Purse | None:
            if purse is None or not isinstance(event, kinds):
                return original(purse, event)
            return broken(purse, event, original)

        return spend

    patches.name(SPENDING, "spend", wrap)


def _always(patches: Patches, name: str, answer: Any) -> None:
    patches.name(RESERVING, name, lambda original: lambda *given, **named: answer)


def settling_forgets(patches: Patches) -> None:
    """Release what was reserved when a model replies, and forget what it took."""

    def settle(purse: Purse, event: Any, original: Spend) -> Purse:
        return replace(purse, reserved={})

    _spends(patches, e.ModelReplied, settle)


def reserve_skipped(patches: Patches) -> None:
    """Ask a model without reserving anything for it."""
    _always(patches, "reserve", None)


def raise_doubles(patches: Patches) -> None:
    """Add what somebody gives twice."""

    def twice(purse: Purse, event: e.Event, original: Spend) -> Purse:
        once = original(purse, event)
        again = original(once, event)
        assert again is not None
        return again

    _spends(patches, e.BudgetRaised, twice)


def doubt_is_free(patches: Patches) -> None:
    """Release what was reserved for a call that may have been billed."""
    _always(patches, "may_be_billed", False)


def resending_is_free(patches: Patches) -> None:
    """Ask a model again after its node died, and pay for it once."""
    _spends(patches, e.ModelCallResent, lambda purse, event, original: purse)


def ended_runs_release(patches: Patches) -> None:
    """Release what a cancelled run leaves open: its model was asked all the same."""

    def end(purse: Purse, event: e.Event, original: Spend) -> Purse:
        return replace(purse, reserved={})

    _spends(patches, e.RunCancelled, end)


def reservation_leaks(patches: Patches) -> None:
    """Keep what was reserved for a call that was refused."""

    def fail(purse: Purse, event: Any, original: Spend) -> Purse:
        after = original(purse, event)
        assert after is not None
        return after if event.doubtful else replace(after, reserved=purse.reserved)

    _spends(patches, e.ModelCallFailed, fail)


def worst_case_is_hoped_away(patches: Patches) -> None:
    """Reserve for four bytes a token, as texts mostly have."""
    patches.name(
        RESERVING,
        "input_tokens_max",
        lambda original: lambda *given: original(*given) // 4,
    )


def calls_not_counted(patches: Patches) -> None:
    """Call a tool as often as a model likes."""
    _always(patches, "_short_of_calls", None)


MUTANTS = (
    settling_forgets,
    reserve_skipped,
    raise_doubles,
    doubt_is_free,
    resending_is_free,
    ended_runs_release,
    reservation_leaks,
    worst_case_is_hoped_away,
    calls_not_counted,
)
