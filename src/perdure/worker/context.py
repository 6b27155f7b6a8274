"""What a tool is told about the call it carries out."""

from __future__ import annotations

import msgspec

from perdure.core.ids import SessionId


class ToolContext(msgspec.Struct, frozen=True, gc=False):
    """The call a tool carries out; a worker fills parameters of this type with it.

    `key` is the idempotency key: every attempt at this call, on every node, presents the same one,
    and no other call does. Hand it to whoever can refuse a second payment. `attempt` counts from 1.
    `timeout_ms` is how long this attempt may take. Only `key` is required, so that a unit test can
    make a context.
    """

    key: str
    session: SessionId = SessionId("default", "", "")
    run: str = ""
    call: str = ""
    attempt: int = 1
    agent: str = ""
    timeout_ms: int = 300_000
