"""A purse kept by somebody who does not trust `spending`: the same sums, made in another way.

It reads the events of one run and keeps a list of what was paid, from which every sum is made anew.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from perdure.core import events as e
from perdure.core.budget import Budget, Purse, Reserve


class Account:
    """What a run was given, what it took, and what of that is still open."""

    def __init__(self, budget: Budget) -> None:
        self.given = [(budget.tokens_max, budget.cost_micros_max)]
        self.calls_given = Counter(budget.calls_max)
        self.calls_limited = frozenset(budget.calls_max)
        self.paid: list[tuple[int, int, bool]] = []
        self.open: dict[str, Reserve] = {}
        self.calls: Counter[str] = Counter()

    @property
    def tokens(self) -> int:
        """How many tokens are paid or taken for paid."""
        return sum(tokens for tokens, _, _ in self.paid)

    @property
    def micros(self) -> int:
        """How much money is paid or taken for paid."""
        return sum(micros for _, micros, _ in self.paid)

    def take(self, event: e.Event) -> str:
        """Take the next event of the run; return what is wrong with it, if something is."""
        match event:
            case e.ModelCallIntended() | e.CompactionIntended():
                return self._reserve(event)
            case e.ModelReplied() | e.ContextCompacted():
                self._settle(event)
            case e.ModelCallFailed() | e.CompactionFailed():
                reserved = self.open.pop(event.call, None)
                if reserved is not None and event.doubtful:
                    self._doubt(reserved)
            case e.ModelCallResent():
                if event.call not in self.open:
                    return f"{event.call} is sent again, and nothing is reserved for it"
                self._doubt(self.open[event.call])
                return self._too_much("sending it again")
            case e.BudgetRaised():
                return self._raise(event)
            case e.ToolCallIntended():
                self.calls[event.name] += 1
                most = self.calls_given[event.name]
                if event.name in self.calls_limited and self.calls[event.name] > most:
                    return f"{self.calls[event.name]} calls of {event.name}, of at most {most}"
            case e.RunCompleted() | e.RunFailed() | e.RunCancelled():
                for reserved in self.open.values():
                    self._doubt(reserved)
                self.open.clear()
        return ""

    def differs(self, purse: Purse) -> str:
        """Return in what a purse is not what is in these books; nothing if it agrees."""
        doubtful = [(tokens, micros) for tokens, micros, doubt in self.paid if doubt]
        kept: dict[str, Any] = {
            "tokens": self.tokens,
            "cost_micros": self.micros,
            "doubtful_tokens": sum(tokens for tokens, _ in doubtful),
            "doubtful_micros": sum(micros for _, micros in doubtful),
            "reserved": self.open,
            "calls": dict(self.calls),
        }
        wrong = {name: value for name, value in kept.items() if getattr(purse, name) != value}
        given = (purse.allotted.tokens_max, purse.allotted.cost_micros_max)
        if given != self.given_in_all():
            wrong["allotted"] = self.given_in_all()
        return "; ".join(
            f"{name} is {getattr(purse, name)}, not {value}" for name, value in wrong.items()
        )

    def given_in_all(self) -> tuple[int | None, int | None]:
        """Return what there is in all: nothing is a limit that there never was."""
        tokens, micros = zip(*self.given, strict=True)
        return (
            None if tokens[0] is None else sum(each or 0 for each in tokens),
            None if micros[0] is None else sum(each or 0 for each in micros),
        )

    def _reserve(self, event: e.ModelCallIntended | e.CompactionIntended) -> str:
        if event.reserved is None:
            limited = [most for most in self.given_in_all() if most is not None]
            return f"nothing is reserved for {event.call}" if limited else ""
        self.open[event.call] = event.reserved
        return self._too_much(f"reserving for {event.call}")

    def _settle(self, event: e.ModelReplied | e.ContextCompacted) -> None:
        reserved = self.open.pop(event.call, None)
        tokens = event.usage.input_tokens + event.usage.output_tokens
        unknown = not tokens or (
            reserved is not None and reserved.cost_micros is not None and event.cost_micros is None
        )
        if reserved is not None and unknown:
            self._doubt(reserved)
        else:
            self.paid.append((tokens, event.cost_micros or 0, False))

    def _doubt(self, reserved: Reserve) -> None:
        self.paid.append((reserved.tokens, reserved.cost_micros or 0, True))

    def _raise(self, event: e.BudgetRaised) -> str:
        if min(event.tokens, event.cost_micros, event.wall_ms, *event.calls.values(), 0) < 0:
            return "a budget is raised by less than nothing"
        self.given.append((event.tokens, event.cost_micros))
        self.calls_given.update(event.calls)
        return ""

    def _too_much(self, doing: str) -> str:
        tokens, micros = self.given_in_all()
        spoken = self.tokens + sum(one.tokens for one in self.open.values())
        money = self.micros + sum(one.cost_micros or 0 for one in self.open.values())
        if tokens is not None and spoken > tokens:
            return f"{doing} makes {spoken} tokens of {tokens}"
        if micros is not None and money > micros:
            return f"{doing} makes {money} millionths of {micros}"
        return ""
