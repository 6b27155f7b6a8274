"""Type hints become JSON schemas, and JSON becomes what the hints ask for."""

from __future__ import annotations

import enum
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import annotated_types
import msgspec
import pydantic
import pytest

from perdure.core.errors import InvalidInput
from perdure.worker import ToolContext, tool
from perdure.worker.schema import Parameters


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    WORD = "a"
    NUMBER = 2


@dataclass
class Point:
    x: int
    y: int = 3


@dataclass
class Line:
    """Two points."""

    ends: list[Point]
    label: str | None = None
    tags: set[str] = field(default_factory=set)


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Place(NamedTuple):
    row: int
    seat: str = "A"


class Order(msgspec.Struct, forbid_unknown_fields=True):
    sku: str
    count: Annotated[int, msgspec.Meta(gt=0)] = 1


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    legs: int


class Customer(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2)
    orders: list[int] = []


class Tree(pydantic.BaseModel):
    value: int
    children: list[Tree] = []


@dataclass
class Node:
    value: int
    next: Node | None = None


UserId = NewType("UserId", int)
T = TypeVar("T", bound=int)
INTEGER = {"type": "integer"}
STRING = {"type": "string"}
DATE_TIME = {"type": "string", "format": "date-time"}
POINT = {
    "title": "Point",
    "type": "object",
    "properties": {"x": INTEGER, "y": {"type": "integer", "default": 3}},
    "required": ["x"],
}
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")

# hint, schema of the property, JSON that is taken -> value, JSON that is refused -> what is said
CASES: list[tuple[Any, Any, Any, Any, Any, str]] = [
    (int, INTEGER, 5, 5, "5", "Expected `int`, got `str` - at `$.x`"),
    (int, INTEGER, 5.0, 5, True, "Expected `int`, got `bool` - at `$.x`"),
    (float, {"type": "number"}, 1, 1.0, "a", "Expected `float`, got `str` - at `$.x`"),
    (bool, {"type": "boolean"}, True, True, 1, "Expected `bool`, got `int` - at `$.x`"),
    (str, STRING, "a", "a", None, "Expected `str`, got `null` - at `$.x`"),
    (Any, {}, {"a": [1.0]}, {"a": [1.0]}, ..., ""),
    (object, {}, [1], [1], ..., ""),
    (
        Optional[int],  # noqa: UP045
        {"anyOf": [INTEGER, {"type": "null"}]},
        None,
        None,
        "a",
        "Expected `int | null`, got `str` - at `$.x`",
    ),
    (
        Union[int, str],  # noqa: UP007
        {"anyOf": [INTEGER, STRING]},
        "a",
        "a",
        [],
        "Expected `int | str`, got `array` - at `$.x`",
    ),
    (
        Literal["up", "down"],
        {"enum": ["down", "up"]},
        "up",
        "up",
        "left",
        "Invalid enum value 'left' - at `$.x`",
    ),
    (
        Colour,
        {"$ref": "#/$defs/Colour"},
        "red",
        Colour.RED,
        "green",
        "Invalid enum value 'green' - at `$.x`",
    ),
    (Level, {"$ref": "#/$defs/Level"}, 2, Level.HIGH, 3, "Invalid enum value 3 - at `$.x`"),
    (Mixed, {"$ref": "#/$defs/Mixed"}, 2, Mixed.NUMBER, 3, "Input should be 'a' or 2, got `int`"),
    (
        list[int],
        {"type": "array", "items": INTEGER},
        [1, 2.0],
        [1, 2],
        [1, "a"],
        "Expected `int`, got `str` - at `$.x[1]`",
    ),
    (
        Sequence[str],
        {"type": "array", "items": STRING},
        ["a"],
        ["a"],
        "a",
        "Expected `array`, got `str` - at `$.x`",
    ),
    (
        dict[str, int],
        {"type": "object", "additionalProperties": INTEGER},
        {"a": 1},
        {"a": 1},
        {"a": "b"},
        "Expected `int`, got `str` - at `$.x[...]`",
    ),
    (
        dict[int, str],
        {"type": "object", "additionalProperties": STRING},
        {"1": "a"},
        {1: "a"},
        {"b": "a"},
        "Expected `int`, got `str` - at `key` in `$.x`",
    ),
    (
        Mapping[str, Any],
        {"type": "object"},
        {"a": None},
        {"a": None},
        [],
        "Expected `object`, got `array` - at `$.x`",
    ),
    (
        set[str],
        {"type": "array", "items": STRING, "uniqueItems": True},
        ["a", "a"],
        {"a"},
        [1],
        "Expected `str`, got `int` - at `$.x[0]`",
    ),
    (
        tuple[int, str],
        {
            "type": "array",
            "prefixItems": [INTEGER, STRING],
            "minItems": 2,
            "maxItems": 2,
            "items": False,
        },
        [1, "a"],
        (1, "a"),
        [1],
        "Expected `array` of length 2, got 1 - at `$.x`",
    ),
    (
        tuple[int, ...],
        {"type": "array", "items": INTEGER},
        [1, 2],
        (1, 2),
        {},
        "Expected `array`, got `object` - at `$.x`",
    ),
    (
        Point,
        {"$ref": "#/$defs/Point"},
        {"x": 1},
        Point(1),
        {},
        "Object missing required field `x` - at `$.x`",
    ),
    (
        Line,
        {"$ref": "#/$defs/Line"},
        {"ends": [{"x": 1}], "tags": ["a"]},
        Line([Point(1)], None, {"a"}),
        {"ends": [{"x": "a"}]},
        "Expected `int`, got `str` - at `$.x.ends[0].x`",
    ),
    (
        Movie,
        {"$ref": "#/$defs/Movie"},
        {"title": "M"},
        {"title": "M"},
        {"year": 1931},
        "Object missing required field `title` - at `$.x`",
    ),
    (
        Place,
        {"$ref": "#/$defs/Place"},
        [4],
        Place(4),
        ["a"],
        "Expected `int`, got `str` - at `$.x[0]`",
    ),
    (
        Order,
        {"$ref": "#/$defs/Order"},
        {"sku": "a"},
        Order("a"),
        {"sku": "a", "count": 0},
        "Expected `int` >= 1 - at `$.x.count`",
    ),
    (
        Order,
        {"$ref": "#/$defs/Order"},
        {"sku": "a"},
        Order("a"),
        {"sku": "a", "colour": 1},
        "Object contains unknown field `colour` - at `$.x`",
    ),
    (
        Cat | Dog,
        {
            "anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {
                "propertyName": "type",
                "mapping": {"Cat": "#/$defs/Cat", "Dog": "#/$defs/Dog"},
            },
        },
        {"type": "Dog", "legs": 4},
        Dog(4),
        {"type": "Cow"},
        "Invalid value 'Cow' - at `$.x.type`",
    ),
    (
        Node,
        {"$ref": "#/$defs/Node"},
        {"value": 1, "next": {"value": 2}},
        Node(1, Node(2)),
        {"value": 1, "next": {}},
        "Object missing required field `value` - at `$.x.next`",
    ),
    (
        Customer,
        {"$ref": "#/$defs/Customer"},
        {"name": "Ann", "orders": [1]},
        Customer(name="Ann", orders=[1]),
        {"name": "Ann", "orders": ["1"]},
        "Input should be a valid integer, got `str` - at `$.x.orders.0`",
    ),
    (
        list[Customer] | None,
        {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/$defs/Customer"}},
                {"type": "null"},
            ]
        },
        [{"name": "Ann"}],
        [Customer(name="Ann")],
        [{"name": "A"}],
        "String should have at least 2 characters, got `str` - at `$.x.0.name`",
    ),
    (
        Tree,
        {"$ref": "#/$defs/Tree"},
        {"value": 1, "children": [{"value": 2}]},
        Tree(value=1, children=[Tree(value=2)]),
        {"value": 1, "children": [{}]},
        "Field required, got `dict` - at `$.x.children.0.value`",
    ),
    (
        Annotated[int, pydantic.Field(gt=3, description="D")],
        {"type": "integer", "exclusiveMinimum": 3, "description": "D"},
        4,
        4,
        3,
        "Input should be greater than 3, got `int` - at `$.x`",
    ),
    (
        Annotated[str, annotated_types.Len(2)],
        {"type": "string", "minLength": 2},
        "ab",
        "ab",
        "a",
        "String should have at least 2 characters, got `str` - at `$.x`",
    ),
    (
        Annotated[str, msgspec.Meta(pattern="^a", description="D")],
        {"type": "string", "pattern": "^a", "description": "D"},
        "ab",
        "ab",
        "b",
        "Expected `str` matching regex '^a' - at `$.x`",
    ),
    (
        Annotated[int, "How many."],
        {"type": "integer", "description": "How many."},
        1,
        1,
        "a",
        "Expected `int`, got `str` - at `$.x`",
    ),
    (
        Annotated[int, "How many."] | None,
        {"anyOf": [INTEGER, {"type": "null"}], "description": "How many."},
        1,
        1,
        "a",
        "Expected `int | null`, got `str` - at `$.x`",
    ),
    (datetime, DATE_TIME, "2026-01-02T03:04:05Z", MOMENT, "soon", "Invalid RFC3339 encoded"),
    (
        dict[str, list[datetime] | None],
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [{"type": "array", "items": DATE_TIME}, {"type": "null"}]
            },
        },
        {"a": ["2026-01-02T03:04:05Z"]},
        {"a": [MOMENT]},
        {"a": ["soon"]},
        "Invalid RFC3339 encoded datetime - at `$.x[...][0]`",
    ),
    (
        date,
        {"type": "string", "format": "date"},
        "2026-01-02",
        date(2026, 1, 2),
        "2026",
        "Invalid RFC3339 encoded date - at `$.x`",
    ),
    (
        timedelta,
        {"type": "string", "format": "duration"},
        "PT5M",
        timedelta(minutes=5),
        "soon",
        "Invalid ISO8601 duration - at `$.x`",
    ),
    (
        Decimal,
        {"type": "string", "format": "decimal"},
        "1.50",
        Decimal("1.50"),
        "a",
        "Invalid decimal string - at `$.x`",
    ),
    (
        uuid.UUID,
        {"type": "string", "format": "uuid"},
        str(ID),
        ID,
        "1",
        "Invalid UUID - at `$.x`",
    ),
    (UserId, INTEGER, 1, 1, "a", "Expected `int`, got `str` - at `$.x`"),
    (T, INTEGER, 1, 1, "a", "Expected `int`, got `str` - at `$.x`"),
    (
        str | date,
        {"anyOf": [STRING, {"type": "string", "format": "date"}]},
        "a",
        "a",
        1,
        "Input should be a valid string, got `int`",
    ),
]


@pytest.mark.parametrize("hint,schema,raw,value,bad,message", CASES)
def test_a_hint_is_a_schema_and_a_check(
    hint: Any, schema: Any, raw: Any, value: Any, bad: Any, message: str
) -> None:
    """What the model is told is what is taken, and what is not taken is named with its place."""

    def f(x: Any) -> None: ...

    f.__annotations__["x"] = hint
    parameters = Parameters(f, "f", {})
    assert parameters.schema["properties"] == {"x": schema}
    assert parameters.schema["required"] == ["x"]
    assert parameters.schema["additionalProperties"] is False
    assert parameters.schema["type"] == "object"
    assert _references(parameters.schema) <= set(parameters.schema.get("$defs", ()))
    msgspec.json.encode(parameters.schema)
    converted = parameters.convert({"x": raw})["x"]
    assert converted == value
    assert type(converted) is type(value)
    if bad is not ...:
        with pytest.raises(InvalidInput) as caught:
            parameters.convert({"x": bad})
        assert message in str(caught.value)


def _references(schema: Any) -> set[str]:
    """Every definition that is referred to, anywhere."""
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    if not isinstance(schema, dict):
        return set()
    inside = set().union(*map(_references, schema.values()))
    reference = schema.get("$ref")
    return inside | {reference.removeprefix("#/$defs/")} if reference else inside


def test_shared_types_stand_under_defs_once() -> None:
    """Also those of two libraries."""

    def f(a: Point, b: list[Line], c: Customer, d: Customer) -> None: ...

    schema = Parameters(f, "f", {}).schema
    assert set(schema["$defs"]) == {"Point", "Line", "Customer"}
    assert schema["$defs"]["Point"] == POINT
    assert schema["$defs"]["Line"]["description"] == "Two points."


def test_two_types_of_one_name_are_refused() -> None:
    """If they come from two libraries, a reference could not say which is meant."""

    class Customer(msgspec.Struct):
        number: int

    def f(a: Customer, b: Any) -> None: ...

    f.__annotations__["b"] = globals()["Customer"]
    with pytest.raises(InvalidInput, match="two different types called 'Customer'"):
        Parameters(f, "f", {})


def test_what_is_missing_unknown_and_wrong_is_said_at_once() -> None:
    """So that a model can mend everything in one attempt."""

    def pay(cents: int, to: str, note: str = "") -> None: ...

    with pytest.raises(InvalidInput) as caught:
        Parameters(pay, "pay", {}).convert({"cents": "5", "amount": 1})
    assert str(caught.value) == (
        "Missing argument `to`; Expected `int`, got `str` - at `$.cents`; "
        "Unknown argument `amount`: pay takes `cents`, `to`, `note`"
    )


@pytest.mark.parametrize("raw", [None, [], "a", 1])
def test_arguments_are_an_object(raw: Any) -> None:
    """Whatever else a model sends is refused."""

    def f() -> None: ...

    with pytest.raises(InvalidInput, match="Expected an object"):
        Parameters(f, "f", {}).convert(raw)


def test_a_tool_without_parameters_takes_nothing() -> None:
    """And says so."""

    def f() -> None: ...

    parameters = Parameters(f, "f", {})
    assert parameters.schema == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    assert parameters.convert({}) == {}
    with pytest.raises(InvalidInput, match="Unknown argument `a`: f takes no arguments"):
        parameters.convert({"a": 1})


@pytest.mark.parametrize(
    "default,told",
    [
        (3, 3),
        (None, None),
        ([], []),
        (Point(1), {"x": 1, "y": 3}),
        (Colour.RED, "red"),
        ({"b", "a"}, ["a", "b"]),
        (Customer(name="Ann"), {"name": "Ann", "orders": []}),
    ],
)
def test_defaults_are_told_and_left_to_the_function(default: Any, told: Any) -> None:
    """What the model leaves out is not passed."""

    def f(x: Any = default) -> None: ...

    parameters = Parameters(f, "f", {})
    assert parameters.schema["properties"]["x"]["default"] == told
    assert parameters.schema["required"] == []
    assert parameters.convert({}) == {}


def test_a_default_that_is_not_json_is_not_told() -> None:
    """A sentinel means something to the function only."""

    def f(x: Any = ...) -> None: ...

    assert Parameters(f, "f", {}).schema["properties"]["x"] == {}


def test_a_default_of_none_makes_a_parameter_optional() -> None:
    """`x: int = None` takes null, as its author meant."""

    def f(x: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    assert Parameters(f, "f", {}).convert({"x": None}) == {"x": None}


def test_the_nearest_description_wins() -> None:
    """The annotation over the docstring, the docstring over nothing."""

    def f(a: Annotated[int, "From the hint."], b: int, c: int) -> None: ...

    properties = Parameters(f, "f", {"a": "From the docs.", "b": "From the docs."}).schema[
        "properties"
    ]
    assert properties["a"]["description"] == "From the hint."
    assert properties["b"]["description"] == "From the docs."
    assert "description" not in properties["c"]


@pytest.mark.parametrize(
    "hint", [ToolContext, ToolContext | None, Annotated[ToolContext, "x"], "ToolContext"]
)
def test_the_context_is_not_in_the_schema(hint: Any) -> None:
    """The worker fills it in; a model that sends one is refused."""

    def f(x: int, where: Any = None) -> None: ...

    f.__annotations__["where"] = hint
    parameters = Parameters(f, "f", {})
    assert list(parameters.schema["properties"]) == ["x"]
    assert parameters.context == ("where",)
    with pytest.raises(InvalidInput, match="Unknown argument `where`"):
        parameters.convert({"x": 1, "where": {}})


def test_types_that_are_local_to_a_function_are_found() -> None:
    """Although the hints of this module are text."""

    @dataclass
    class Local:
        a: int

    def outer() -> Any:
        class Inner(msgspec.Struct):
            b: Local
            c: dict[str, Inner] = {}

        class Keyed(TypedDict):
            d: list[Inner]

        @tool
        def f(x: Keyed, y: list[Local]) -> None: ...

        return f

    inner = {"b": {"a": 1}, "c": {"k": {"b": {"a": 2}}}}
    found = outer().arguments({"x": {"d": [inner]}, "y": [{"a": 3}]})
    assert found["y"] == [Local(3)]
    assert found["x"]["d"][0].c["k"].b == Local(2)


def test_the_locals_of_a_mere_caller_are_not_seen() -> None:
    """A name means what it means where the function is written."""
    Point = int  # noqa: N806, F841

    assert _made_elsewhere().arguments({"x": {"x": 1}}) == {"x": Point_(1)}


Point_ = Point


def _made_elsewhere() -> Any:
    @tool
    def f(x: Point) -> None: ...

    return f


def refused_star(*numbers: int) -> None: ...
def refused_double_star(**numbers: int) -> None: ...
def refused_positional(x: int, /) -> None: ...
def refused_bare(x) -> None: ...  # type: ignore[no-untyped-def]
def refused_callable(x: complex) -> None: ...
def refused_unknown(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "function,message",
    [
        (refused_star, "parameter 'numbers' takes any number of arguments: take one parameter"),
        (refused_double_star, "parameter 'numbers' takes arguments of any name"),
        (refused_positional, "parameter 'x' is positional-only"),
        (refused_bare, "parameter 'x' has no type: say what it takes, as in `x: str`"),
        (refused_unknown, "'Missing' cannot be resolved"),
    ],
)
def test_what_no_model_could_call_is_refused(function: Any, message: str) -> None:
    """With the tool, the parameter and what to do."""
    with pytest.raises(InvalidInput) as caught:
        tool(function)
    assert message in str(caught.value)
    assert f"tool {function.__name__!r}" in str(caught.value)


def test_a_type_that_nobody_can_express_is_refused() -> None:
    """The message says what can be used."""

    class Opaque:
        def __init__(self, a: int) -> None: ...

    def f(x: Opaque) -> None: ...

    with pytest.raises(InvalidInput, match=r"parameter 'x': .*Opaque.* cannot be described.*Use"):
        tool(f)


def test_without_pydantic_the_rest_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency."""
    monkeypatch.setitem(sys.modules, "pydantic", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def f(x: Line) -> None: ...
    def g(x: complex) -> None: ...

    assert tool(f).arguments({"x": {"ends": []}})["x"] == Line([])
    with pytest.raises(InvalidInput, match="parameter 'x': .*complex.* cannot be described"):
        tool(g)


def test_a_type_that_refuses_its_own_values_is_quoted() -> None:
    """Whatever its constructor raises."""

    @dataclass
    class Even:
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise KeyError("odd")

    def f(x: Even) -> None: ...

    with pytest.raises(InvalidInput, match="KeyError: 'odd' - at `\\$.x`"):
        tool(f).arguments({"x": {"n": 1}})
