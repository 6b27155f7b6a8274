"""The page about the API says what to send."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

from perdure.api.openapi import document
from perdure.server.reading import page_of

PAGE = page_of(document("0"))


def entry(method: str, path: str) -> str:
    """Return what the page says of a call, as text with a line for each row."""
    start = PAGE.index(f'{method}</span><span class="path">{path}</span>')
    return text_of(PAGE[start : PAGE.index("</details>", start)])


def text_of(html: str) -> str:
    """Return HTML as text: cells apart, a line for each row and paragraph."""
    lines = re.sub(r"</tr>|</p>", "\n", html).replace("</td>", " | ")
    return unescape(re.sub(r"<[^>]+>", "", lines))


@pytest.mark.parametrize(
    ("method", "path", "row"),
    [
        ("POST", "/api/v1/agents/{id}/messages", "content | string or object or list, required"),
        ("POST", "/api/v1/agents/{id}/messages", "mode | interrupt or queue or reject or steer,"),
        ("POST", "/api/v1/agents/{id}/messages", "context | MessageContext or null"),
        ("POST", "/api/v1/agents/{id}/messages", "Idempotency-Key | header: string of at most 512"),
        ("POST", "/api/v1/agents/{id}/messages", "202 | Accepted: Accepted"),
        ("GET", "/api/v1/runs", "200 | OK: Page of Run"),
        ("POST", "/api/v1/endpoints", "url | string of at most 2000 characters, required"),
        ("POST", "/api/v1/endpoints", "enabled | boolean, true if not given"),
        ("GET", "/api/v1/runs", "limit | query: integer from 1"),
        ("GET", "/api/v1/runs/{id}", "id | path: integer from 1, required"),
        ("GET", "/api/v1/runs/{id}/wait", "timeout | query: number from 0 to"),
    ],
)
def test_what_a_call_takes_is_a_row_each(method: str, path: str, row: str) -> None:
    assert row in entry(method, path)


def test_every_field_of_every_body_is_told() -> None:
    told = document("0")
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                name = body["schema"].get("$ref", "").rpartition("/")[2]
                fields = told["components"]["schemas"].get(name, {}).get("properties", {})
                shown = entry(method.upper(), path)
                assert [field for field in fields if f"{field} | " not in shown] == []


def test_links_lead_to_objects_of_the_page() -> None:
    links = set(re.findall(r'href="#(\w+)"', PAGE))
    assert links
    assert links <= set(re.findall(r'id="(\w+)"', PAGE))


def test_what_is_code_is_set_so_and_sentences_end_once() -> None:
    text = text_of(PAGE)
    assert "`" not in text
    assert ".;" not in text


def test_text_of_the_document_is_escaped() -> None:
    info = {"title": "<b>", "version": "1", "description": "`<i>`"}
    field = {"description": "<u>", "enum": ["<s>"]}
    body: Any = {"content": {"application/json": {"schema": {"$ref": "#/x/Y"}}}}
    paths = {"/<p>": {"post": {"summary": "<em>", "requestBody": body}}}
    schemas = {"Y": {"properties": {"<q>": field}, "description": "<a>"}}
    page = page_of({"info": info, "paths": paths, "components": {"schemas": schemas}})
    for tag in ("<b>", "<i>", "<u>", "<s>", "<p>x", "<em>", "<q>", "<a>"):
        assert tag not in page
