"""The type hints of a function's parameters, resolved: also as text, also of local types."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from datetime import datetime
from types import FunctionType, SimpleNamespace, UnionType
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin

import msgspec

from perdure.core.errors import InvalidInput
from perdure.worker.context import ToolContext

_UNIONS = (Union, UnionType)
_FORMATTED = Annotated[datetime, msgspec.Meta(extra_json_schema={"format": "date-time"})]


def resolve(function: Callable[..., Any], parameter: inspect.Parameter, where: str) -> Any:
    """Return the type a parameter is annotated with; a default of None makes it optional.

    Names are looked up where the function was written: its module, then the functions and classes
    around it that are still running. Raises `InvalidInput`, which `where` opens.
    """
    base = inspect.unwrap(function)
    base = getattr(base, "__func__", base)
    annotation = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    names, local = getattr(base, "__globals__", {}), _around(base)
    try:
        hint = typing.get_type_hints(annotation, names, local, include_extras=True)[parameter.name]
        _resolve_fields(hint, local)
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{where}: its annotation {parameter.annotation!r} cannot be resolved ({error}); "
            "import the type where the function is defined, and not only under TYPE_CHECKING"
        ) from None
    return hint | None if parameter.default is None and hint is not Any else hint


def _around(function: Any) -> dict[str, Any]:
    """Return the local names that the body of a function can see, the innermost winning."""
    if not isinstance(function, FunctionType):
        return {}
    names: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:
        inside = function.__qualname__.startswith(f"{frame.f_code.co_qualname}.")
        if inside and frame.f_globals is function.__globals__:
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # the variable has no value yet
            continue
    return names


def _resolve_fields(hint: Any, local: dict[str, Any]) -> None:
    """Replace text in the annotations of local classes: msgspec looks only into their modules."""
    fields = vars(hint).get("__annotations__", {}) if isinstance(hint, type) else {}
    unresolved = any(isinstance(each, str | ForwardRef) for each in fields.values())
    if unresolved and "<locals>" in hint.__qualname__:
        found = typing.get_type_hints(hint, localns=local, include_extras=True)
        fields.update({name: found[name] for name in fields})
        for each in fields.values():
            _resolve_fields(each, local)
    for part in get_args(hint):
        _resolve_fields(part, local)


def wants_context(hint: Any) -> bool:
    """Say whether a hint is `ToolContext`, optional or not."""
    inner = get_args(hint) if get_origin(hint) in (*_UNIONS, Annotated) else ()
    return hint is ToolContext or any(wants_context(part) for part in inner)


def said(hint: Any) -> str:
    """Return the description in `Annotated[..., "description"]`, or an empty string."""
    if get_origin(hint) in _UNIONS:
        return next(filter(None, map(said, get_args(hint))), "")
    return next((word for word in getattr(hint, "__metadata__", ()) if isinstance(word, str)), "")


def wants_pydantic(hint: Any) -> bool:
    """Say whether a hint means something to pydantic that msgspec would pass over in silence."""
    rules = getattr(hint, "__metadata__", ())
    if any(type(rule).__module__.startswith(("pydantic", "annotated_types")) for rule in rules):
        return True
    marks = ("__pydantic_validator__", "__get_pydantic_core_schema__")
    if isinstance(hint, type) and any(hasattr(hint, mark) for mark in marks):
        return True
    return any(wants_pydantic(part) for part in get_args(hint))


def with_formats(hint: Any) -> Any:
    """Return the hint with `datetime` saying which format of string it wants."""
    if hint is datetime:
        return _FORMATTED
    parts = get_args(hint)
    told = tuple(map(with_formats, parts))
    if told == parts:
        return hint
    origin = get_origin(hint)
    return (Union if origin in _UNIONS else origin)[told]
