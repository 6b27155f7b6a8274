"""What a command prints: text for people, or one JSON object a line for programs."""

from __future__ import annotations

import re
import sys
import unicodedata
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f]")
_encode = msgspec.json.Encoder().encode


UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Categories of characters that nobody sees, or that change what others look like."""


def plain(text: Any) -> str:
    """Return text that cannot move the cursor, colour the screen or hide characters."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", str(text))


def marked(text: str) -> str:
    """Return text in which every character that nobody can see is written as its code point."""
    return "".join(
        f"<U+{ord(one):04X}>" if unicodedata.category(one) in UNSEEN else one for one in text
    )


def short(text: Any, chars_max: int = 100) -> str:
    """Return one line of text, cut to a length."""
    if not isinstance(text, str):
        text = _encode(text).decode()
    line = " ".join(plain(text).split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def clock_time(at_ms: int) -> str:
    """Return a time of day in UTC, to the millisecond."""
    when = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return when.strftime("%H:%M:%S.%f")[:-3]


def timestamp(at_ms: int | None) -> str | None:
    """Return a time in ISO 8601, UTC."""
    if at_ms is None:
        return None
    when = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Output:
    """Prints for the reader that `--json` chose."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._lines = sys.stdout.buffer
        if as_json:
            # What tools and agents print must not mix with the lines of JSON.
            sys.stdout = sys.stderr

    def record(self, fields: dict[str, Any], text: str) -> None:
        """Print one record: `fields` as a JSON line, or `text`."""
        if self.as_json:
            self._lines.write(_encode(fields) + b"\n")
            self._lines.flush()
        else:
            click.echo(text)

    def say(self, text: str) -> None:
        """Print something that only a person wants."""
        if not self.as_json:
            click.echo(text)
