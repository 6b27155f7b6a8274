"""What this process knows to be secret is taken out of everything that leaves the worker.

Values become known when they are resolved, and stay known until the process ends: a key that was
replaced is still a key. Error texts and log lines are also kept free of the values of environment
variables that are named like secrets, as SDKs read those by themselves.

One list serves the whole process, as its loggers and its environment do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from perdure.ports.credentials import HIDDEN

SECRET_CHARS_MIN = 8
"""What is shorter cannot be told from ordinary text, and is not accepted as a credential."""

KNOWN_MAX = 1_000
"""How many values are remembered; of more, those that were used last."""

LOGGERS = ("perdure", "perdure.worker", "perdure.worker.socket", "asyncio")
"""Loggers whose lines are redacted wherever they go."""

_NAMED_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|DATABASE_URL|DSN)$")
_PASSWORD_IN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:([^/@\s]{8,})@")
_known: OrderedDict[str, None] = OrderedDict()
_forms: tuple[str, ...] = ()
_in_json: tuple[bytes, ...] = ()


def remember(value: str) -> None:
    """Let a value be known as a secret, unless it is too short to be told from ordinary text."""
    global _forms, _in_json
    if len(value) < SECRET_CHARS_MIN:
        return
    if value in _known:
        _known.move_to_end(value)
        return
    _known[value] = None
    while len(_known) > KNOWN_MAX:
        _known.popitem(last=False)
    # A new tuple each time: threads of tools read it without a lock.
    _forms = _longest_first(form for each in tuple(_known) for form in _forms_of(each))
    _in_json = tuple(_escaped(form).encode(errors="replace") for form in _forms)


def redact(text: str) -> str:
    """Return a text that people or logs are told without any secret that is known."""
    return _without(_without(text, _forms), _longest_first(_of_environment()))


def hidden(text: str) -> str:
    """Return a text without what was resolved as a credential."""
    return _without(text, _forms)


def hidden_in(value: Any, body: bytes) -> Any:
    """Return a JSON value without what was resolved as a credential; `body` is its JSON.

    A value that holds none is the same object.
    """
    return _walk(value) if is_known_in(body) else value


def is_known_in(body: bytes) -> bool:
    """Say whether anything that was resolved as a credential is in the texts of this JSON."""
    return any(form in body for form in _in_json)


class RedactingFilter(logging.Filter):
    """Takes known secrets out of a log record: its message, its traceback and its stack.

    perdure's own loggers have it. To cover what other libraries log, add it to your handlers.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record that holds a secret; let every record pass."""
        told = record.getMessage()
        clean = redact(told)
        if clean != told:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
            clean = redact(trace)
            if clean != trace:
                record.exc_info, record.exc_text = None, clean
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


_filter = RedactingFilter()


def guard_logs() -> None:
    """Redact what perdure's loggers say; harmless a second time."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)


def _walk(value: Any) -> Any:
    if isinstance(value, str):
        return _without(value, _forms)
    if isinstance(value, dict):
        return {_walk(name): _walk(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(each) for each in value]
    return value


def _without(text: str, forms: Iterable[str]) -> str:
    for form in forms:
        if form in text:
            text = text.replace(form, HIDDEN)
    return text


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _longest_first(forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(forms), key=len, reverse=True))


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= SECRET_CHARS_MIN and _NAMED_SECRET.search(name.upper()):
            yield from _forms_of(value)
        in_url = _PASSWORD_IN_URL.match(value)
        if in_url is not None:
            yield from (in_url[1], unquote(in_url[1]))


@lru_cache(maxsize=KNOWN_MAX)
def _forms_of(value: str) -> tuple[str, ...]:
    """Return the shapes in which a value may stand in a text: escaped, in a URL, in base64."""
    lines = [line.strip() for line in value.splitlines() if len(line.strip()) > SECRET_CHARS_MIN]
    return (
        value,
        *(line for line in lines if not line.startswith("-----")),
        _escaped(value),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
        quote(value, safe=""),
        quote_plus(value),
        *_in_base64(value.encode(errors="surrogatepass")),
    )


def _in_base64(value: bytes) -> Iterator[str]:
    """Give the part of a base64 text that stands for a value, wherever in it the value begins."""
    for encode in (b64encode, urlsafe_b64encode):
        for before in range(3):
            text = encode(b"\0" * before + value).decode()
            yield text[(0, 2, 3)[before] : (before + len(value)) * 8 // 6]
