"""Errors that name what was wrong, where, what was expected and what to do."""

from __future__ import annotations


class PerdureError(Exception):
    """The base of every error this package raises on purpose."""


class InvalidInput(PerdureError):
    """The caller asked for something that cannot be: the message says what was expected."""


class NotFound(PerdureError):
    """The named agent, session, run or call does not exist."""


class LimitExceeded(PerdureError):
    """A limit was reached; the message names the limit and its value."""


class IllegalTransition(PerdureError):
    """An event came in a status in which the transition table has no row for it."""


class UnreadableEvent(PerdureError):
    """An event's bytes cannot be read: they are corrupt, or of a newer version. They are kept."""


class RunFailed(PerdureError):
    """The run ended without an answer; `error_class` and `code` say what kind of failure it was."""

    def __init__(self, message: str, error_class: str = "internal", code: str = "") -> None:
        super().__init__(message)
        self.error_class = error_class
        self.code = code


class RunCancelled(PerdureError):
    """The run was cancelled; the message says why."""


class Quarantined(PerdureError):
    """The session is set aside and runs no more until it is released by hand."""


class Refused(PerdureError):
    """What was asked cannot apply any more, or not to this run; `code` names the reason."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerRefused(PerdureError):
    """The server will not have this worker, now or later; `code` names the reason.

    `unauthorized`, `forbidden`, `gard_destroyed`, `key_revoked`, `not_native`, the reason of a
    refused join, or the status with which the server refused an agent's definition.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class BrokenChain(PerdureError):
    """A log does not match its hashes; `seq` is the first position that does not."""

    def __init__(self, seq: int, message: str) -> None:
        super().__init__(message)
        self.seq = seq


class StoreError(PerdureError):
    """A store did not do what was asked. Nothing was written, unless a subclass says otherwise."""


class Fenced(StoreError):
    """Somebody else owns the session now: the token is no longer the current one."""


class Conflict(StoreError):
    """The session has moved on: the expected version is not the current one."""


class Unavailable(StoreError):
    """The store could not answer; whether a write happened is unknown until it is read again."""


class Broken(Unavailable):
    """The store answers no more until it is opened again: a disk failed, or it was closed."""


class KeyReused(StoreError):
    """An idempotency key was used again with other content."""


class StoreLocked(StoreError):
    """Another process holds the store's file."""


class StoreRefused(StoreError):
    """The store's file is of a newer version or has unsafe settings, and was left untouched."""
