"""Every limit of the core, with its unit in its name."""

from __future__ import annotations

from typing import Any

MESSAGE_BYTES_MAX = 256 * 1024
FORK_BYTES_MAX = 16 * 1024 * 1024
REPLY_BYTES_MAX = 4 * 1024 * 1024
ARGUMENT_BYTES_MAX = 1024 * 1024
RESULT_BYTES_MAX = 1024 * 1024
ERROR_CHARS_MAX = 4_000
TOOL_CALLS_PER_STEP_MAX = 64
ATTEMPTS_PER_TOOL_CALL_MAX = 3
APPROVERS_MAX = 16
ROLES_MAX = 16
DECIDED_MAX = 32
"""So many decisions on approvals a session remembers, for those who come late."""
USES_MAX = 64
"""Of so many standing approvals a session counts the uses: with more, a limited one does not apply.
"""
DOUBTS_MAX = 64
"""With so many calls of unknown outcome, no other call that may change something is made.

None of them is forgotten: the calls of one step may become as many more.
"""
RESTARTS_MAX = 100
"""So many restarts of a child its parent remembers; more in one window are not allowed."""
WINDOW_MESSAGES_MAX = 400
REMINDERS_MAX = 100
REMIND_MS_MIN = 1_000
WAIT_SECONDS_MAX = 366 * 24 * 3600
INBOX_ENTRIES_MAX = 1_000
BLOB_THRESHOLD_BYTES = 64 * 1024
SNAPSHOT_EVERY_EVENTS = 200
STRIKES_MAX = 3
"""A session that was being run when its host died this often in a row is quarantined."""


JSON_DEPTH_MAX = 100
"""How deeply messages, replies, arguments and results may be nested."""


def too_deep(value: Any, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Say whether a JSON value is nested deeper than `depth_max`."""
    level = [value]
    for _ in range(depth_max + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def may_be_too_deep(body: bytes, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Say at a glance whether a JSON text has enough brackets for that: few have."""
    return body.count(b"[") + body.count(b"{") > depth_max


def clip(text: str, chars_max: int = ERROR_CHARS_MAX) -> str:
    """Return `text`, cut to `chars_max` with a note of how much was left out."""
    if len(text) <= chars_max:
        return text
    return f"{text[:chars_max]}… ({len(text) - chars_max} more characters)"
