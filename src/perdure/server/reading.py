"""The API's document as a page for people: one section for each noun, one entry for each call."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, .path { font-family: ui-monospace, monospace } h2 { margin-top: 2.5rem }
details { border-top: 1px solid #ddd; padding: .4rem 0 } summary { cursor: pointer }
.method { display: inline-block; width: 4.5rem; font-weight: 600 } .says { color: #555 }
table { border-collapse: collapse; margin: .5rem 0 } td { padding: .1rem 1rem .1rem 0;
vertical-align: top }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #ddd }
.says { color: #aaa } details { border-color: #333 } a { color: #8ab4f8 } }
"""


def page_of(document: dict[str, Any]) -> str:
    """Return the page. All text of the document is escaped."""
    title = f"{document['info']['title']} {document['info']['version']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{escape(document['info'].get('description', ''))}</p>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(_sections(document))}</html>"
    )


def _sections(document: dict[str, Any]) -> Iterator[str]:
    nouns: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            entry = _entry(path, method, operation)
            nouns.setdefault((operation.get("tags") or ["server"])[0], []).append(entry)
    for noun, entries in nouns.items():
        yield f"<h2>{escape(noun)}</h2>{''.join(entries)}"


def _entry(path: str, method: str, operation: dict[str, Any]) -> str:
    takes = [
        (one.get("name", ""), one.get("description", "")) for one in operation.get("parameters", ())
    ]
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    takes += [("body", _shape(body.get("schema", {}))) for body in bodies]
    answers = [
        (status, answer.get("description", ""))
        for status, answer in operation.get("responses", {}).items()
    ]
    return (
        f'<details><summary><span class="method">{escape(method.upper())}</span>'
        f'<span class="path">{escape(path)}</span> '
        f'<span class="says">{escape(operation.get("summary", ""))}</span></summary>'
        f"{_table('Takes', takes)}{_table('Answers', answers)}</details>"
    )


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(str(name))}</code></td><td>{escape(str(said))}</td></tr>"
        for name, said in rows
    )
    return f"<p><strong>{title}</strong></p><table>{cells}</table>"


def _shape(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", schema.get("type", "JSON"))).rsplit("/", 1)[-1]
