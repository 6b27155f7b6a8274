"""A definition as data: what is stored of it, what can be made of that again, and what differs.

The template of an agent is its whole specification as canonical JSON, without code and without
secrets; its digest is the definition's. What is local to a process is the code that it names: the
functions of tools, and a model that is a function or an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from perdure.core.agent import AgentSpec, ToolSpec, define
from perdure.core.budget import check_budget
from perdure.core.errors import InvalidInput
from perdure.core.references import check_credentials

VALUE_CHARS_MAX = 80


def template(spec: AgentSpec) -> bytes:
    """Return the template of an agent: the bytes that its digest is of."""
    [body] = define(spec).blobs.values()
    return body


def read_template(body: bytes | Mapping[str, Any]) -> AgentSpec:
    """Return the specification that a template holds, as JSON or decoded from it.

    Raises `InvalidInput` for one that this version does not understand in full: a field that is
    left out in silence would make another agent of it.
    """
    try:
        raw = msgspec.json.decode(body) if isinstance(body, bytes) else body
        spec = msgspec.convert(raw, AgentSpec)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"the definition of an agent cannot be read: {error}") from None
    unknown = sorted(_unknown(raw, spec, ""))
    if unknown:
        raise InvalidInput(
            f"the definition of agent {spec.name!r} has what this version of perdure does not "
            f"know: {', '.join(unknown)}"
        )
    check_credentials(spec.credentials, f"agent {spec.name!r}")
    if spec.budget is not None:
        check_budget(spec.budget, None, f"agent {spec.name!r}")
    return spec


def differences(wanted: AgentSpec, found: AgentSpec) -> list[str]:
    """Return, field by field, how a specification is not the wanted one; tools by their names."""
    return list(_differences(wanted, found, ""))


def tool_differences(wanted: ToolSpec, found: ToolSpec | None) -> list[str]:
    """Return, field by field, how a tool is not the wanted one; `found` is None if it is missing.

    Names the versions alone where these say already that it is another tool.
    """
    if found is None:
        return [f"tool {wanted.name!r} is missing"]
    if wanted.version != found.version:
        return [_differs(f"tool {wanted.name!r}: version", wanted.version, found.version)]
    return list(_differences(wanted, found, f"tool {wanted.name!r}: "))


def _differences(wanted: msgspec.Struct, found: msgspec.Struct, where: str) -> Iterator[str]:
    for field in wanted.__struct_fields__:
        one, other = getattr(wanted, field), getattr(found, field)
        if one == other:
            continue
        if field == "tools":
            yield from _of_tools(one, other)
        elif isinstance(one, msgspec.Struct) and isinstance(other, msgspec.Struct):
            yield from _differences(one, other, f"{where}{field}.")
        else:
            yield _differs(f"{where}{field}", one, other)


def _of_tools(wanted: tuple[ToolSpec, ...], found: tuple[ToolSpec, ...]) -> Iterator[str]:
    here = {tool.name: tool for tool in found}
    there = {tool.name: tool for tool in wanted}
    for tool in wanted:
        yield from tool_differences(tool, here.get(tool.name))
    yield from (f"tool {name!r} is not part of it" for name in here if name not in there)
    if list(here) != list(there) and here.keys() == there.keys():
        yield "the tools are in another order"


def _differs(what: str, wanted: Any, found: Any) -> str:
    return f"{what} is {_short(found)}, and should be {_short(wanted)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}…"


def _unknown(raw: Any, typed: Any, where: str) -> Iterator[str]:
    """Give the fields of JSON that were not read into what was made of it."""
    if isinstance(typed, msgspec.Struct) and isinstance(raw, Mapping):
        for name, value in raw.items():
            if name not in typed.__struct_fields__:
                yield f"{where}{name}"
            else:
                yield from _unknown(value, getattr(typed, name), f"{where}{name}.")
    elif isinstance(typed, tuple) and isinstance(raw, list | tuple):
        for number, (one, each) in enumerate(zip(raw, typed, strict=True)):
            yield from _unknown(one, each, f"{where.rstrip('.')}[{number}].")
