"""What both clients ask of httpx2."""

from __future__ import annotations

from typing import Any

import httpx2

from perdure.client.errors import Unreachable
from perdure.core.errors import InvalidInput


def settings(url: str, key: str, timeout_s: float) -> dict[str, Any]:
    """Return how a connection to the server at `url` is made. Raises `InvalidInput`."""
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"the server's URL is {url!r}; expected http://HOST:PORT or https://HOST"
        )
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {_checked(key)}"},
        "timeout": timeout_s,
    }


def _checked(key: str) -> str:
    """Return a key without the white space around it; what it says is repeated nowhere."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InvalidInput("the API key is empty, or has characters that no key has")
    return key


def limits(base: httpx2.Timeout, hold_s: float) -> httpx2.Timeout:
    """Return the time limits of a request whose answer may be silent for so much longer."""
    read = None if base.read is None else base.read + hold_s
    return httpx2.Timeout(connect=base.connect, read=read, write=base.write, pool=base.pool)


def unreachable(url: httpx2.URL, error: httpx2.TransportError) -> Unreachable:
    """Return what a failed connection means to who asked."""
    said = str(error) or type(error).__name__
    return Unreachable(f"no answer from the server at {url}: {said}")
