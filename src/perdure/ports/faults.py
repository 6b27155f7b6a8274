"""Fault points: named places in product code at which a test may let the process die.

A no-op in production. `perdure.testing.faults` installs a hook; every site is listed in `SITES`, so
that a proof can say which share of them it has reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

SITES: Mapping[str, str] = {
    "accept.before": "a command was received, nothing is written",
    "accept.after": "the command is durable, its receipt not yet returned",
    "claim.after": "a session was claimed and read, nothing is decided",
    "commit.submitted": "a step commit was handed to the store",
    "store.before_begin": "a batch was collected, no transaction is open",
    "store.before_commit": "a transaction holds the whole batch, uncommitted",
    "store.after_commit": "the batch is durable, nobody has been told",
    "commit.acknowledged": "the runtime learnt that a commit is durable",
    "dispatch.before": "a call is owed and about to be given to a worker",
    "model.before": "a model is about to be asked",
    "model.after": "a model has replied, nothing is recorded",
    "tool.begun": "the beginning of a once call is durable, the tool has not run",
    "tool.before": "a tool is about to run",
    "tool.after": "a tool has run, its result is not recorded",
    "release.before": "a session is about to be released",
    "recovery.scanned": "a scan returned sessions that are due",
}

_hook: Callable[[str], None] | None = None


def reach(site: str) -> None:
    """Note that `site` was reached; without an installed hook this does nothing."""
    if _hook is not None:
        _hook(site)


def install(hook: Callable[[str], None] | None) -> None:
    """Install what happens at fault points, or remove it with None."""
    global _hook
    _hook = hook
