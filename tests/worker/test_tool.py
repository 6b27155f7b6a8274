"""`@tool` declares what a function promises, and leaves the function what it was."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from perdure.core.agent import ToolSpec
from perdure.core.errors import InvalidInput
from perdure.worker import Tool, ToolContext, tool


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def probe(key: str) -> bool:
    return key == "k"


def test_bare_and_with_arguments() -> None:
    """The same specification, but for what is declared."""
    bare, called, named = tool(add), tool()(add), tool(name="plus", effect="read")(add)
    assert bare.spec == called.spec == ToolSpec("add", "Add two numbers.", bare.spec.parameters)
    assert (named.spec.name, named.spec.effect) == ("plus", "read")


def test_a_tool_is_called_like_its_function() -> None:
    """So that a unit test of it needs nothing of ours."""
    made = tool(add)
    assert made(2) == 3
    assert made(2, b=2) == 4
    assert made.__name__ == "add"
    assert made.__doc__ == "Add two numbers."
    assert repr(made) == "<Tool add (once)>"
    assert tool(made) is made


async def test_an_async_tool_is_awaited_like_its_function() -> None:
    """And knows that it is async."""

    @tool
    async def f(a: int) -> int:
        return a

    assert f.is_async
    assert await f(3) == 3


@pytest.mark.parametrize(
    "declared,effect,on_unknown",
    [
        ({}, "once", "tell"),
        ({"effect": "once"}, "once", "ask"),
        ({"probe": probe}, "once", "ask"),
        ({"effect": "once", "probe": probe}, "once", "ask"),
        ({"effect": "once", "on_unknown": "tell"}, "once", "tell"),
        ({"on_unknown": "ask"}, "once", "ask"),
        ({"effect": "read"}, "read", "tell"),
        ({"effect": "idempotent"}, "idempotent", "tell"),
    ],
)
def test_the_effect_and_who_hears_of_the_unknown(
    declared: dict[str, Any], effect: str, on_unknown: str
) -> None:
    """Undeclared is once, and the model is told; whoever declares once has a person asked."""
    spec = tool(**declared)(add).spec
    assert (spec.effect, spec.on_unknown) == (effect, on_unknown)
    assert spec.probe == ("probe" in declared)


def test_the_other_declarations() -> None:
    """Seconds become milliseconds."""
    spec = tool(timeout=1.5, capabilities=["mail", "net"])(add).spec
    assert spec.timeout_ms == 1500
    assert spec.capabilities == ("mail", "net")
    assert tool(capabilities="mail")(add).spec.capabilities == ("mail",)
    assert tool(add).spec.timeout_ms == 300_000


class Adder:
    def add(self, a: int) -> int:
        return a


def gives(a: int) -> Any:
    yield a


@pytest.mark.parametrize(
    "function,declared,message",
    [
        (add, {"effect": "twice"}, "effect is one of ('read', 'idempotent', 'once'), not 'twice'"),
        (add, {"on_unknown": "hope"}, "on_unknown is one of ('tell', 'ask')"),
        (add, {"effect": "read", "probe": probe}, "only a `once` tool is probed"),
        (add, {"timeout": 0}, "timeout is a number of seconds, not 0"),
        (add, {"timeout": "5"}, "timeout is a number of seconds, not '5'"),
        (add, {"timeout": True}, "timeout is a number of seconds, not True"),
        (add, {"timeout": float("inf")}, "timeout is a number of seconds"),
        (add, {"capabilities": [1]}, "capabilities are strings, not (1,)"),
        (add, {"capabilities": None}, "capabilities are strings"),
        (add, {"probe": 3}, "probe is a function of the key, not 3"),
        (add, {"probe": lambda: True}, "the probe takes (key) or (key, context)"),
        (add, {"probe": lambda a, b, c: True}, "the probe takes (key) or (key, context)"),
        (add, {"probe": lambda *, key: True}, "the probe takes (key) or (key, context)"),
        (add, {"name": "a b"}, "'a b' cannot be the name of a tool"),
        (add, {"name": 3}, "3 cannot be the name of a tool"),
        (lambda: 1, {}, "'<lambda>' cannot be the name of a tool"),
        (Adder, {}, "a tool is made of a function"),
        (functools.partial(add, 1), {}, "a tool is made of a function"),
        (Adder.add, {}, "parameter 'self' has no type: this is a method"),
        (gives, {}, "tool 'gives' yields, and a call has one result"),
        (lambda x: x, {"name": "f", "isolated": True}, "parameter 'x' has no type"),
        (lambda: 1, {"name": "f", "isolated": True}, "cannot be found by another process"),
        (Adder().add, {"isolated": True}, "cannot be found by another process"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(
    function: Any, declared: dict[str, Any], message: str
) -> None:
    """When it is declared, not when it is called."""
    with pytest.raises(InvalidInput) as caught:
        tool(**declared)(function)
    assert message in str(caught.value)


def test_a_bound_method_is_a_tool() -> None:
    """Its object comes along."""
    made: Tool[..., int] = tool(Adder().add)
    assert made.spec.name == "add"
    assert made.run(made.arguments({"a": 2}), ToolContext("k")) == 2


def test_the_context_is_filled_in_under_any_name() -> None:
    """Also where it is optional."""

    @tool
    def f(a: int, ctx: ToolContext, other: ToolContext | None = None) -> tuple[int, str, str]:
        return a, ctx.key, other.key if other else ""

    assert f.run(f.arguments({"a": 1}), ToolContext("k")) == (1, "k", "k")
    assert f(1, ToolContext("mine")) == (1, "mine", "")


def test_a_context_is_frozen() -> None:
    """A tool cannot change the call it carries out."""
    with pytest.raises(AttributeError):
        ToolContext("k").key = "other"  # type: ignore[misc]


def probe_with_context(key: str, context: ToolContext) -> str:
    return f"{key} {context.attempt}"


def probe_with_option(key: str, verbose: bool = False) -> str:
    return f"{key} {verbose}"


async def probe_async(key: str) -> str:
    return key


@pytest.mark.parametrize(
    "given,answer",
    [
        (None, None),
        (probe, True),
        (probe_with_context, "k 2"),
        (probe_with_option, "k False"),
        (lambda *keys: keys, ("k",)),
    ],
)
def test_a_probe_is_asked_with_the_key(given: Any, answer: Any) -> None:
    """And with the context, if it wants it."""
    assert tool(probe=given)(add).probe(ToolContext("k", attempt=2)) == answer


def test_an_async_probe_gives_a_coroutine() -> None:
    """And is known as such."""
    made = tool(probe=probe_async)(add)
    assert made.probe_is_async
    assert asyncio.run(made.probe(ToolContext("k"))) == "k"


def test_attributes_of_the_function_do_not_shadow_the_tool() -> None:
    """A function may carry what it likes."""

    def f() -> None: ...

    f.spec = "mine"  # type: ignore[attr-defined]
    assert isinstance(tool(f).spec, ToolSpec)
