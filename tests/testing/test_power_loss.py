"""Whatever was acknowledged is there after a loss of power; and the judge can say no."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.adapters.stores.sqlite import writer
from perdure.core.limits import BLOB_THRESHOLD_BYTES
from perdure.testing.disk_workload import LARGE, reference
from perdure.testing.power_loss import SEEDS, survey

PARTS = 8
CONTROL = {"seeds": 4, "parts": 3}
"""Every third operation is enough to see that the judge can say no."""


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_acknowledged_is_lost_at_full(part: int) -> None:
    found = survey("FULL", part=part, parts=PARTS)
    assert not found.wrong, "\n".join(["", *map(str, found.wrong)])


def test_normal_loses_what_was_acknowledged_and_corrupts_nothing() -> None:
    found = survey("NORMAL", **CONTROL)
    assert found.lost > 0
    assert found.corrupt == 0


def test_off_loses_and_corrupts() -> None:
    found = survey("OFF", **CONTROL)
    assert found.lost > 0
    assert found.corrupt > 0


def test_a_batch_in_several_transactions_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge tells a part of a batch from a whole one."""
    transact = writer.Writer._transact
    reference("FULL")

    def one_by_one(self: writer.Writer, batch: list[writer.Operation]) -> list[Any]:
        return [claim for operation in batch for claim in transact(self, [operation])]

    monkeypatch.setattr(writer.Writer, "_transact", one_by_one)
    assert survey("FULL", **CONTROL).corrupt > 0


def test_the_workload_reaches_what_it_is_for() -> None:
    """Commits of every kind, a refusal, two lives; and enough cases."""
    found = reference("FULL")
    last = found.states[-1]
    versions = [row[6] for row in last["sessions"]]
    assert versions == [8, 4]
    assert len(found.states) == 16
    assert found.refused == 1
    assert (found.operations + 1) * SEEDS >= 5_000
    assert len(LARGE) > BLOB_THRESHOLD_BYTES
    assert all(last[name] for name in last if name != "nodes")
