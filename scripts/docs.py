"""Write the pages that come out of the code: `make docs`. A test compares them with what is there.

A page that a person would have to keep in step with a table is printed from the table instead.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from perdure.core.events import EVENT_TYPES
from perdure.core.transitions import CALL, SESSION

ROOT: Final = Path(__file__).parents[1]
GENERATED: Final = "<!-- Written by `make docs`; change the code, not this page. -->"
EVENTS_HEAD: Final = f"""# Events

{GENERATED}

What can stand in a session's log. An event is stored as the JSON of the fields below, with its type
under `type`; a field that has its default is left out. Every event also has `at`, the time at which
it was recorded, in milliseconds since 1970 (UTC)."""
STATES_HEAD: Final = f"""# States

{GENERATED}

Printed from the two tables in `src/perdure/core/transitions.py`. What has no arrow cannot happen:
the event is refused with an error, and nothing is written."""


def pages() -> dict[Path, str]:
    """Return every generated page: where it stands -> its text."""
    return {
        ROOT / "docs" / "reference" / "events.md": _events(),
        ROOT / "docs" / "internals" / "states.md": _states(),
    }


def _events() -> str:
    parts = [EVENTS_HEAD]
    for name, event in EVENT_TYPES.items():
        parts += [f"## `{name}`", getdoc(event) or ""]
        fields = [field for field in msgspec.structs.fields(event) if field.name != "at"]
        if fields:
            rows = [f"| `{f.encode_name}` | {_spell(f.type)} | {_default(f)} |" for f in fields]
            parts.append("\n".join(["| field | type | default |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _default(field: Any) -> str:
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _spell(kind: Any) -> str:
    """Return a type as a reader of JSON would name it."""
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any JSON"}
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is types.NoneType:
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " or ".join(_spell(argument) for argument in arguments)
    if origin in {list, tuple, frozenset}:
        return f"list of {_spell(arguments[0])}"
    if origin in {dict, Mapping} or kind is dict:
        return "object"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        inside = ", ".join(f.encode_name for f in msgspec.structs.fields(kind))
        return f"object ({inside})"
    return plain.get(kind, str(kind))


def _states() -> str:
    parts = [STATES_HEAD, "## A session", _diagram(SESSION), "## A call", _diagram(CALL)]
    return "\n\n".join(parts) + "\n"


def _diagram(table: Mapping[str, Mapping[str, str]]) -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR"]
    for status, row in table.items():
        by_next: dict[str, list[str]] = {}
        for event, following in row.items():
            by_next.setdefault(following, []).append(event)
        for following, events in by_next.items():
            lines.append(f"    {status} --> {following} : {'<br/>'.join(events)}")
    return "\n".join([*lines, "```"])


def main() -> None:
    """Write every page that differs, and say which."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
