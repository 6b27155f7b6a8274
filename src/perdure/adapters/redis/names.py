"""Parts of keys: what would be mistaken for a separator is escaped."""

from __future__ import annotations


def escape(part: str) -> str:
    """Return a part of a key without the characters that separate parts."""
    return part.replace("%", "%25").replace("/", "%2F").replace("\n", "%0A")


def unescape(escaped: str) -> str:
    """Return the part of which `escape` made this."""
    return escaped.replace("%0A", "\n").replace("%2F", "/").replace("%25", "%")
