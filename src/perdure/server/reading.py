"""The API's document as a page for people: a section for each noun, an entry for each call.

What a call takes is written out; the objects inside it, and those of answers, are at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, .path { font-family: ui-monospace, monospace; font-size: .93em; overflow-wrap: anywhere }
h2 { margin-top: 2.5rem } h3 { margin: 1.5rem 0 .3rem; font-size: 1rem }
details { border-top: 1px solid #ddd; padding: .4rem 0 } summary { cursor: pointer }
details > *:not(summary) { margin-left: 1.1rem }
.method { display: inline-block; width: 4.5rem; font-weight: 600 } .says { color: #555 }
table { border-collapse: collapse; margin: .5rem 0 } td { padding: .1rem 1rem .1rem 0;
vertical-align: top } td:first-child { white-space: nowrap }
:root { color-scheme: light dark }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #ddd }
.says { color: #aaa } details { border-color: #333 } a { color: #8ab4f8 } }
"""
INTEGER_MAX_SHOWN = 10**9
"""A larger bound is that of what a number can be, and tells nobody anything."""

_CODE = re.compile(r"`([^`]+)`")
_GENERIC = re.compile(r"^([A-Za-z]+)_(\w+)_$")
_PLURALS = {"string": "strings", "object": "objects", "integer": "integers"}


def page_of(document: dict[str, Any]) -> str:
    """Return the page. All text of the document is escaped."""
    title = f"{document['info']['title']} {document['info']['version']}"
    schemas = document.get("components", {}).get("schemas", {})
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
        f"{_text(document['info'].get('description', ''))}"
        '<p>For programs: <a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(_sections(document, schemas))}"
        f"<h2>objects</h2>{''.join(_object(name, schemas[name]) for name in sorted(schemas))}"
        "</html>"
    )


def _sections(document: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    nouns: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            entry = _entry(path, method, operation, schemas)
            nouns.setdefault((operation.get("tags") or ["server"])[0], []).append(entry)
    for noun, entries in nouns.items():
        yield f"<h2>{escape(noun)}</h2>{''.join(entries)}"


def _entry(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    scope = operation.get("x-scope")
    needs = f"<p>Needs a key of the scope <code>{escape(scope)}</code>.</p>" if scope else ""
    takes = [
        (_code(one["name"]), f"{one['in']}: {_field(one['schema'], one.get('required', False))}",
         _inline(one.get("description", "")))
        for one in operation.get("parameters", ())
    ]  # fmt: skip
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    answers = [
        (_code(status), _answer(status, answer))
        for status, answer in operation.get("responses", {}).items()
    ]
    return (
        f'<details><summary><span class="method">{escape(method.upper())}</span>'
        f'<span class="path">{escape(path)}</span> '
        f'<span class="says">{_inline(operation.get("summary", ""))}</span></summary>'
        f"{needs}{_table('Takes', takes)}"
        f"{''.join(_body(body.get('schema', {}), schemas) for body in bodies)}"
        f"{_table('Answers', answers)}</details>"
    )


def _body(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return what is to be sent, field by field."""
    known = schemas.get(_name(schema))
    if known is None:
        return f"<p><strong>Body</strong>: {_type(schema)}</p>"
    said = _text(known.get("description", ""))
    return f"<p><strong>Body</strong></p>{said}{_table('', _fields(known))}"


def _object(name: str, schema: dict[str, Any]) -> str:
    said = _text(schema.get("description", ""))
    return f'<h3 id="{escape(name)}">{_title(name)}</h3>{said}{_table("", _fields(schema))}'


def _fields(schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    required = schema.get("required", ())
    return [
        (_code(name), _field(field, name in required), _inline(_meaning(field)))
        for name, field in schema.get("properties", {}).items()
    ]


def _field(schema: dict[str, Any], required: bool) -> str:
    """Return a field's type, and whether it has to be there."""
    if required:
        return f"{_type(schema)}, <strong>required</strong>"
    default = schema.get("default")
    if default in (None, "", [], {}):
        return _type(schema)
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{_type(schema)}, {_code(shown)} if not given"


def _type(schema: dict[str, Any]) -> str:
    if name := _name(schema):
        return f'<a href="#{escape(name)}">{_title(name)}</a>'
    if "enum" in schema:
        return " or ".join(_code(choice) for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    kind = str(schema.get("type", "any JSON"))
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {_PLURALS.get(items.get('type', ''), _type(items))}" if items else "list"
    return escape(kind + _bounds(schema, kind))


def _bounds(schema: dict[str, Any], kind: str) -> str:
    if kind == "string":
        longest = schema.get("maxLength")
        return f" of at most {longest} characters" if longest else ""
    least, most = schema.get("minimum"), schema.get("maximum")
    said = "" if least is None else f" from {least}"
    return f"{said} to {most}" if most is not None and most <= INTEGER_MAX_SHOWN else said


def _meaning(schema: dict[str, Any]) -> str:
    """Return what a field's shape says of it, also where it may be null."""
    said = [schema, *schema.get("anyOf", ())]
    return next((one["description"] for one in said if "description" in one), "")


def _answer(status: str, answer: dict[str, Any]) -> str:
    """Return what an answer says, and its object if it is no failure: those are all alike."""
    said = _inline(answer.get("description", ""))
    shapes = [_type(body.get("schema", {})) for body in answer.get("content", {}).values()]
    is_told = status.startswith("2") and shapes
    return f"{said}: {' or '.join(dict.fromkeys(shapes))}" if is_told else said


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells, which are HTML."""
    if not rows:
        return ""
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    head = f"<p><strong>{title}</strong></p>" if title else ""
    return f"{head}<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _text(said: str) -> str:
    """Return text as paragraphs."""
    return "".join(f"<p>{_inline(part)}</p>" for part in said.split("\n\n") if part.strip())


def _inline(said: str) -> str:
    """Return text with what is between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(said))


def _code(said: Any) -> str:
    return f"<code>{escape(str(said))}</code>"


def _title(name: str) -> str:
    """Return an object's name as it is read: `Page_Run_` is a page of them."""
    return escape(_GENERIC.sub(r"\1 of \2", name))


def _name(schema: dict[str, Any]) -> str:
    """Return the name of the object that a schema refers to, if it does."""
    return str(schema.get("$ref", "")).rsplit("/", 1)[-1]
