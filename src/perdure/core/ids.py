"""Identities. All are deterministic: what must be fresh is passed in by the shell."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

DIGEST_HEX_CHARS = 32


class SessionId(NamedTuple):
    """The address of a session: one durable actor with one log."""

    tenant: str
    agent: str
    key: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.agent}/{self.key}"


def digest(data: bytes) -> str:
    """Return the content address of `data`: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_HEX_CHARS]


def model_call(run_number: int, step: int, attempt: int) -> str:
    """Name the model call of a step; every attempt is a call of its own."""
    return f"{run_number}.{step}.m{attempt}"


def compaction_call(run_number: int, step: int) -> str:
    """Name the model call that compacts the history before a step."""
    return f"{run_number}.{step}.c"


def backoff_call(run_number: int, step: int, attempt: int) -> str:
    """Name the delay before the next attempt of a model call."""
    return f"{run_number}.{step}.b{attempt}"


def budget_call(run_number: int, step: int, breach: int) -> str:
    """Name the wait for more budget before a model call; every breach is a call of its own."""
    return f"{run_number}.{step}.p{breach}"


def tool_call(model_call_id: str, ordinal: int) -> str:
    """Name the tool call number `ordinal` that the model call asked for."""
    return f"{model_call_id.rsplit('.', 1)[0]}.t{ordinal}"


def effect_key(session: SessionId, run: str, step: int, ordinal: int, tool: str) -> str:
    """Return the idempotency key of a tool call.

    It depends on what is asked for and never on who asks, when, or for the how-manieth time, so
    that every attempt on every node presents the same key.
    """
    parts = "\x1f".join((*session, run, str(step), str(ordinal), tool))
    return digest(parts.encode())


_canonical = msgspec.json.Encoder(order="sorted").encode


def arguments_digest(arguments: dict[str, Any]) -> str:
    """Return the content address of arguments, whatever the order in which they are named."""
    return digest(_canonical(arguments))
