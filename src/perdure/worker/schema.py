"""A function's parameters: as the JSON schema a model is shown, and as a check of what it sends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from perdure.core.errors import InvalidInput
from perdure.worker.hints import resolve, said, wants_context
from perdure.worker.typed import Types
from perdure.worker.values import Unserialisable, plain

_Kind = inspect.Parameter
_REFUSED = {
    _Kind.POSITIONAL_ONLY: "is positional-only, and a model names its arguments: remove the `/`",
    _Kind.VAR_POSITIONAL: "takes any number of arguments: take one parameter with a list of them",
    _Kind.VAR_KEYWORD: "takes arguments of any name: take one parameter with a dict of them",
}


class Parameters:
    """The parameters of a tool's function.

    `schema` describes them; it stands alone, shared types under `$defs`. `context` names those
    that the worker fills with a `ToolContext`; they are not in the schema. `documented` is what
    the docstring says of each. Raises `InvalidInput` for a function no model could call.
    """

    def __init__(
        self, function: Callable[..., Any], tool: str, documented: Mapping[str, str]
    ) -> None:
        self.tool = tool
        hints: dict[str, Any] = {}
        context: list[str] = []
        try:
            signature = inspect.signature(function).parameters
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"tool {tool!r}: {error}: wrap it in a function") from None
        for parameter in signature.values():
            hint = _hint(function, tool, parameter)
            if wants_context(hint):
                context.append(parameter.name)
            else:
                hints[parameter.name] = hint
        self.context = tuple(context)
        self._types = Types(hints, f"tool {tool!r}")
        self._required = [name for name in hints if signature[name].default is _Kind.empty]
        properties = {
            name: _described(self._types.schemas[name], hint, signature[name], documented)
            for name, hint in hints.items()
        }
        self.schema: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": self._required,
            "additionalProperties": False,
        }
        if self._types.definitions:
            self.schema["$defs"] = self._types.definitions
        self._together = self._types.together(self._required)

    def convert(self, raw: object) -> dict[str, Any]:
        """Return the arguments in `raw` as the types that the function asks for.

        Raises `InvalidInput` with everything that is wrong: what is missing, what is unknown, and
        where a value is not what was expected.
        """
        if not isinstance(raw, dict):
            raise InvalidInput(f"Expected an object with arguments, got `{type(raw).__name__}`")
        values = self._at_once(raw)
        return self._one_by_one(raw) if values is None else values

    def _at_once(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments, or None if anything may be wrong with them."""
        if self._together is None or not self.schema["properties"].keys() >= raw.keys():
            return None
        try:
            return cast("dict[str, Any]", msgspec.convert(raw, self._together, str_keys=True))
        except Exception:  # noqa: BLE001  a type of the user's may raise anything
            return None

    def _one_by_one(self, raw: dict[str, Any]) -> dict[str, Any]:
        known = self.schema["properties"]
        problems = [f"Missing argument `{name}`" for name in self._required if name not in raw]
        values: dict[str, Any] = {}
        for name, value in raw.items():
            if name not in known:
                takes = ", ".join(f"`{each}`" for each in known) or "no arguments"
                problems.append(f"Unknown argument `{name}`: {self.tool} takes {takes}")
                continue
            try:
                values[name] = self._types.convert(name, value)
            except InvalidInput as error:
                problems.append(str(error))
        if problems:
            raise InvalidInput("; ".join(problems))
        return values


def _hint(function: Callable[..., Any], tool: str, parameter: inspect.Parameter) -> Any:
    where = f"tool {tool!r}: parameter {parameter.name!r}"
    if parameter.kind in _REFUSED:
        raise InvalidInput(f"{where} {_REFUSED[parameter.kind]}")
    if parameter.annotation is _Kind.empty:
        advice = (
            "this is a method: make a tool of the bound one, tool(object.method)"
            if parameter.name in ("self", "cls")
            else f"say what it takes, as in `{parameter.name}: str`, or `Any` for anything"
        )
        raise InvalidInput(f"{where} has no type: {advice}")
    hint = resolve(function, parameter, where)
    return Any if hint is object else hint


def _described(
    schema: dict[str, Any], hint: Any, parameter: inspect.Parameter, documented: Mapping[str, str]
) -> dict[str, Any]:
    """Return a property with its description (the nearest one wins) and its default."""
    told = dict(schema)
    near = said(hint) or told.get("description") or documented.get(parameter.name)
    if near:
        told["description"] = near
    if parameter.default is not _Kind.empty:
        try:
            told["default"] = plain(parameter.default)
        except Unserialisable:
            told.pop("default", None)
    return told
