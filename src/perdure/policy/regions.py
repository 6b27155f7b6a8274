"""Where a policy can change its mind: what it asks of arguments and of the week, cut at constants.

Between two neighbouring constants every number is as good as any other, so a finite policy looks
at finitely many places. `Scale` numbers them: 0 below the first constant, 1 at it, 2 between it and
the second, and so on. What knows only whole numbers can be told those.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import msgspec

from perdure.policy.conditions import WEEK_MINUTES, kind_of, windows
from perdure.policy.rules import OPERATORS, Predicate, Rule

MONDAY_MS = 1_767_571_200_000
"""2026-01-05, a Monday, 00:00 UTC: the week in which examples happen."""


class Scale(msgspec.Struct, frozen=True):
    """The numbers that a policy compares something to, in their order."""

    constants: tuple[int | float, ...]

    def place(self, number: float) -> int:
        """Return the place of a number: odd at a constant, even between two."""
        index = bisect_left(self.constants, number)
        at = index < len(self.constants) and self.constants[index] == number
        return 2 * index + at

    @property
    def places(self) -> range:
        """All places there are."""
        return range(2 * len(self.constants) + 1)

    def number(self, place: int) -> int | float | None:
        """Return a number at a place, a whole one if there is one; None if there is none at all."""
        index, at = divmod(place, 2)
        if at:
            return self.constants[index]
        if not self.constants:
            return 0
        if index == 0:
            return math.ceil(self.constants[0]) - 1
        below = self.constants[index - 1]
        whole = math.floor(below) + 1
        if index == len(self.constants) or whole < self.constants[index]:
            return whole
        middle = (below + self.constants[index]) / 2
        return middle if below < middle < self.constants[index] else None


def predicates(rules: Iterable[Rule]) -> dict[str, tuple[Predicate, ...]]:
    """Return all that rules ask of arguments, by the path."""
    found: dict[str, tuple[Predicate, ...]] = {}
    for rule in rules:
        for predicate in rule.arguments:
            found[predicate.path] = (*found.get(predicate.path, ()), predicate)
    return found


def constants(asked: Iterable[Predicate]) -> list[Any]:
    """Return what values are compared to, other than by globs."""
    found: list[Any] = []
    for predicate in asked:
        for name in OPERATORS:
            value = None if name in ("matches", "present") else getattr(predicate, name)
            found += value if isinstance(value, tuple) else () if value is None else (value,)
    return found


def scale(asked: Iterable[Predicate]) -> Scale:
    """Return the scale of the numbers that predicates name."""
    numbers = {one for one in constants(asked) if kind_of(one) == "number"}
    return Scale(tuple(sorted(numbers)))


def examples(pattern: str) -> tuple[str, ...]:
    """Return texts that a glob matches, and one that it does not unless it matches all."""
    return (*dict.fromkeys(pattern.replace("*", some) for some in ("", "x")), f"not {pattern}")


def values(asked: Iterable[Predicate]) -> list[Any]:
    """Return a value of every kind, and one from each place that predicates tell apart.

    Of texts these are the constants and examples of the globs, which need not be all. None stands
    for a value that is missing.
    """
    asked = tuple(asked)
    places = scale(asked)
    numbers = [places.number(place) for place in places.places]
    texts = [one for one in constants(asked) if isinstance(one, str)]
    for predicate in asked:
        texts += examples(predicate.matches) if predicate.matches else ()
    others: list[Any] = [None, True, False, "other", *dict.fromkeys(texts), ["other"]]
    return [*others, *(number for number in numbers if number is not None)]


def minutes(rules: Iterable[Rule]) -> list[int]:
    """Return the minutes of the week at which hours of rules begin or end, and Monday 00:00."""
    spans = [span for rule in rules if rule.hours for span in windows(rule.hours)]
    return sorted({0, *(minute % WEEK_MINUTES for span in spans for minute in span)})


def in_that_week(minute: int) -> int:
    """Return a minute of the example week, in milliseconds since 1970."""
    return MONDAY_MS + minute * 60_000
