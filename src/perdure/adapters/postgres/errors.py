"""What an error of the driver means for whoever was writing.

It is told by the SQLSTATE that the server sent, or by its absence: then the server sent nothing
more, and what became of the statement is not known.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["lost", "again", "refused"]

_LOST = ("08", "25006", "57P")
"""The connection or the server is gone, or it is no primary any more."""
_AGAIN = ("40001", "40P01", "53", "55P03", "57014", "58")
"""The transaction was rolled back for reasons that pass: a deadlock, a timeout, a full disk."""


def verdict(error: BaseException) -> Verdict:
    """Say whether a statement's fate is unknown, or it may be tried again, or never will do."""
    state = sqlstate(error)
    if not state or state.startswith(_LOST):
        return "lost"
    return "again" if state.startswith(_AGAIN) else "refused"


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an error; empty if it is none of the server's."""
    return str(getattr(error, "sqlstate", None) or "")


def in_words(error: BaseException) -> str:
    """Return an error in one line. It never holds a password: the server does not repeat one."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
