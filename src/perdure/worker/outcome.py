"""How a tool call ended, in words that can be recorded and told to a model."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from perdure.core.limits import RESULT_BYTES_MAX, clip
from perdure.ports.credentials import CredentialRefused
from perdure.worker.redaction import hidden_in, redact
from perdure.worker.values import Unserialisable, recorded

_log = logging.getLogger("perdure.worker")
_EXCERPT_CHARS = 1_000
REFUSED = "credential_refused"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A call that ended: with a result, or by saying what went wrong (`kind`)."""

    ok: bool
    content: Any
    kind: str = "result"


class Lost(msgspec.Struct, frozen=True, gc=False):
    """A call that was given up without knowing whether it took effect."""

    reason: str


def returned(value: Any) -> Outcome:
    """Return the outcome of a tool that returned `value`.

    A result that is not JSON, or longer than `RESULT_BYTES_MAX`, is a failure that says that the
    tool ran: whoever reads it must not think that nothing happened.
    """
    try:
        content, body = recorded(value)
    except Unserialisable as error:
        return _unserialisable(str(error))
    except Exception as error:  # noqa: BLE001  a result's own code may raise anything
        return _unserialisable(describe(error))
    content = hidden_in(content, body)
    if len(body) <= RESULT_BYTES_MAX:
        return Outcome(True, content)
    start = content if isinstance(content, str) else msgspec.json.encode(content).decode()
    return Outcome(
        False,
        f"The tool ran, but its result has {len(body)} bytes of JSON, more than the limit of "
        f"{RESULT_BYTES_MAX}. It begins: {start[:_EXCERPT_CHARS]}",
        "result_too_large",
    )


def _unserialisable(why: str) -> Outcome:
    text = f"The tool ran, but its result cannot be recorded: {why}"
    return Outcome(False, printable(text), "unserialisable")


def raised(error: BaseException, tool: str) -> Outcome:
    """Return the outcome of a tool that raised: its class and message; the log has the rest."""
    _log.debug("tool %s raised", tool, exc_info=error)
    refused = isinstance(error, CredentialRefused)
    return Outcome(False, describe(error), REFUSED if refused else "raised")


def describe(error: BaseException) -> str:
    """Return an exception as `Class: message`, clipped."""
    try:
        message = str(error)
    except Exception as inner:  # noqa: BLE001  an exception that cannot be printed is still told of
        message = f"(its message cannot be read: {type(inner).__name__})"
    name = type(error).__qualname__
    return printable(f"{name}: {message}" if message else name)


def printable(text: str) -> str:
    """Return `text` as it can be recorded: without secrets, clipped, without lone surrogates."""
    # Redacted first: of a secret that is cut in two, nothing would be recognised.
    return clip(redact(text)).encode(errors="replace").decode()
