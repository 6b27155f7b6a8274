"""Logs of every released version still fold, to the same state: the promise to whoever upgrades."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.core.export import verify_export

LOGS = Path(__file__).parents[1] / "golden" / "logs"
STATES = {
    "0.1-completed": ("idle", "completed", 0),
    "0.1-awaiting-decision": ("acting", "running", 2),
    "0.1-compacted-and-timing": ("acting", "running", 1),
    "0.1-cancelled": ("idle", "cancelled", 0),
}


@pytest.mark.parametrize("name", STATES)
def test_a_stored_log_verifies_and_folds_to_what_it_was(name: str) -> None:
    found = verify_export((LOGS / f"{name}.jsonl").read_bytes().splitlines())
    run = found.state.run
    assert run is not None
    assert (found.state.status, run.status, len(found.state.calls)) == STATES[name]


def test_every_stored_log_is_listed() -> None:
    assert {path.stem for path in LOGS.glob("*.jsonl")} == set(STATES)
