"""Types as JSON schemas, and JSON as values of those types: by msgspec, or by pydantic if need be.

pydantic is no dependency. It is imported when a hint speaks its language, or when msgspec cannot
express a type and pydantic happens to be installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from typing import Any, NotRequired, TypedDict

import msgspec

from perdure.core.errors import InvalidInput
from perdure.worker.hints import wants_pydantic, with_formats

Convert = Callable[[Any], Any]
_REFERENCE = "#/$defs/{name}"
_FLOAT_EXACT_MAX = 2**53


class Types:
    """The schemas of named types, the definitions they share, and how JSON becomes their values.

    `hints` maps a parameter to its type. Raises `InvalidInput` for a type that neither library can
    express; `where` is what its message opens with.
    """

    def __init__(self, hints: Mapping[str, Any], where: str) -> None:
        ours: dict[str, Any] = {}
        adapters: dict[str, Any] = {}
        for name, hint in hints.items():
            problem = _problem(hint)
            if problem is None:
                ours[name] = hint
            else:
                adapters[name] = _adapter(hint, problem, f"{where}: parameter {name!r}")
        self._ours = ours
        self._adapters = adapters
        self.schemas: dict[str, Any] = {}
        self.definitions: dict[str, Any] = {}
        if ours:
            formatted = [with_formats(hint) for hint in ours.values()]
            schemas, self.definitions = msgspec.json.schema_components(
                formatted, ref_template=_REFERENCE
            )
            self.schemas.update(zip(ours, schemas, strict=True))
        if adapters:
            self._describe_adapters(where)

    def together(self, required: Collection[str]) -> Any:
        """Return a type of all of them as one object, or None where pydantic is needed."""
        if self._adapters:
            return None
        fields = {
            name: hint if name in required else NotRequired[hint]
            for name, hint in self._ours.items()
        }
        make: Any = TypedDict
        return make("Arguments", fields)

    def convert(self, name: str, value: Any) -> Any:
        """Return JSON as a value of the type called `name`; raise `InvalidInput` with the path."""
        convert = self._by_pydantic if name in self._adapters else self._by_msgspec
        try:
            return convert(name, value)
        except InvalidInput:
            # JSON schema calls 3.0 an integer, and some providers know no other number.
            whole = _whole(value)
            if whole is value:
                raise
            return convert(name, whole)

    def _by_msgspec(self, name: str, value: Any) -> Any:
        try:
            return msgspec.convert(value, self._ours[name], str_keys=True)
        except msgspec.ValidationError as error:
            said, at, path = str(error).rpartition("`$")
            place = f"{said}{at}.{name}{path}" if at else f"{error} - at `$.{name}`"
            raise InvalidInput(place) from None
        except Exception as error:
            raise InvalidInput(f"{type(error).__name__}: {error} - at `$.{name}`") from error

    def _by_pydantic(self, name: str, value: Any) -> Any:
        pydantic = importlib.import_module("pydantic")
        try:
            return self._adapters[name].validate_json(msgspec.json.encode(value), strict=True)
        except pydantic.ValidationError as error:
            raise InvalidInput(
                "; ".join(
                    f"{each['msg']}, got `{type(each['input']).__name__}`"
                    f" - at `${'.'.join(map(str, ('', name, *each['loc'])))}`"
                    for each in error.errors(include_url=False, include_context=False)
                )
            ) from None
        except Exception as error:
            raise InvalidInput(f"{type(error).__name__}: {error} - at `$.{name}`") from error

    def _describe_adapters(self, where: str) -> None:
        pydantic = importlib.import_module("pydantic")
        try:
            schemas, shared = pydantic.TypeAdapter.json_schemas(
                [(name, "validation", adapter) for name, adapter in self._adapters.items()]
            )
        except pydantic.errors.PydanticUserError as error:
            raise InvalidInput(f"{where}: {error.message}") from None
        self.schemas.update({name: schema for (name, _), schema in schemas.items()})
        for title, definition in shared.get("$defs", {}).items():
            if self.definitions.setdefault(title, definition) != definition:
                raise InvalidInput(
                    f"{where}: its parameters use two different types called {title!r}: "
                    "rename one of them"
                )


def _problem(hint: Any) -> str | None:
    """Return why msgspec cannot express a type, or None."""
    if wants_pydantic(hint):
        return "it is a pydantic type, and pydantic is not installed"
    try:
        msgspec.json.schema_components([hint])
    except (TypeError, NameError, RecursionError) as error:
        return " ".join(str(error).split())
    return None


def _adapter(hint: Any, problem: str, where: str) -> Any:
    advice = (
        f"{where}: {hint} cannot be described to a model: {problem}. Use str, int, float, bool, "
        "lists and dicts of them, Literal, Enum, a dataclass, a TypedDict or a msgspec.Struct"
    )
    if importlib.util.find_spec("pydantic") is None:
        raise InvalidInput(advice)
    pydantic = importlib.import_module("pydantic")
    try:
        return pydantic.TypeAdapter(hint)
    except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
        raise InvalidInput(f"{advice}. pydantic says: {error}") from None


def _whole(value: Any) -> Any:
    """Return JSON with every float that is a whole number as an int; the same object if none is."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _FLOAT_EXACT_MAX:
        return int(value)
    if isinstance(value, list):
        items = [_whole(item) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        fields = {name: _whole(item) for name, item in value.items()}
        return fields if any(fields[name] is not value[name] for name in value) else value
    return value
