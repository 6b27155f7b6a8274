"""A function's docstring, as the model is told: what it does and what its parameters mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import NamedTuple

import docstring_parser


class Documentation(NamedTuple):
    """What a docstring says; empty where it says nothing."""

    description: str
    parameters: Mapping[str, str]


def read(docstring: str | None) -> Documentation:
    """Return what a docstring in Google, numpy, Sphinx or no style at all says."""
    text = inspect.cleandoc(docstring or "").strip()
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return Documentation(text, {})
    parameters = {
        param.arg_name: " ".join(param.description.split())
        for param in parsed.params
        if param.description
    }
    return Documentation((parsed.description or "").strip(), parameters)
