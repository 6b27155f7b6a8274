"""Python values become JSON values, or it is said where they cannot."""

from __future__ import annotations

import enum
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import Mock

import msgspec
import pydantic
import pytest

from perdure.worker.values import Unserialisable, plain


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


class Word(str):
    def __str__(self) -> str:
        return "something else"


@dataclass
class Point:
    x: Any
    y: Any = None


class Pair(NamedTuple):
    a: Any
    b: Any


class Order(msgspec.Struct, rename="camel", tag="order"):
    unit_price: Any
    note: str | msgspec.UnsetType = msgspec.UNSET


class Customer(pydantic.BaseModel):
    name: str
    since: date


@pytest.mark.parametrize(
    "value,expected",
    [
        (None, None),
        (True, True),
        (0, 0),
        (2**70, 2**70),
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        ("", ""),
        ("é", "é"),
        (Word("w"), "w"),
        ([1, [2]], [1, [2]]),
        ((1, 2), [1, 2]),
        ({"b", "a"}, ["a", "b"]),
        (frozenset([3]), [3]),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        ({1: "a", Colour.RED: "b", 1.5: "c"}, {"1": "a", "red": "b", "1.5": "c"}),
        ({date(2026, 1, 2): 1}, {"2026-01-02": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Colour.RED, "red"),
        (Level.HIGH, 2),
        (Point(1, [Point(2)]), {"x": 1, "y": [{"x": 2, "y": None}]}),
        (Pair(1, "b"), [1, "b"]),
        (Order(3), {"type": "order", "unitPrice": 3}),
        (Customer(name="Ann", since=date(2026, 1, 2)), {"name": "Ann", "since": "2026-01-02"}),
        ([Customer(name="Ann", since=date(2026, 1, 2))], [{"name": "Ann", "since": "2026-01-02"}]),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (timedelta(minutes=5), "PT300S"),
        (Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_value_becomes_json(value: Any, expected: Any) -> None:
    """And nothing but JSON: it comes back the same."""
    found = plain(value)
    assert found == expected
    assert msgspec.json.decode(msgspec.json.encode(found)) == expected


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value,message",
    [
        (b"x", "`bytes` at `$` cannot be JSON; return its text, or where it is kept"),
        ({"a": [1, bytearray()]}, "`bytearray` at `$.a[1]` cannot be JSON"),
        (Point(memoryview(b"")), "`memoryview` at `$.x` cannot be JSON"),
        (Order(object()), "`object` at `$.unitPrice` cannot be JSON"),
        ((1, Path("a")), "Path` at `$[1]` cannot be JSON"),
        ({(1,): 2}, "a key of type `tuple` in `$` cannot be JSON"),
        ({"a": {True: 2}}, "a key of type `bool` in `$.a` cannot be JSON"),
        ({"a": "\ud800"}, "the text at `$.a` has lone surrogates"),
        (Point, "`type` at `$` cannot be JSON"),
        (Customer, "`ModelMetaclass` at `$` cannot be JSON"),
        (iter([1]), "`list_iterator` at `$` cannot be JSON"),
        (CYCLE, "nested deeper than 100 levels, or contains itself"),
        (Mock(), "nested deeper than 100 levels, or contains itself"),
    ],
)
def test_what_cannot_be_json_is_named_with_its_place(value: Any, message: str) -> None:
    """So that the author of the tool finds it."""
    with pytest.raises(Unserialisable) as caught:
        plain(value)
    assert message in str(caught.value)
