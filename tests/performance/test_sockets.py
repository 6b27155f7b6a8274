"""What sockets cost a node: bytes for an idle one, and nobody's time for a slow one.

The rigs are those of `make bench ARGS=--served`, smaller. A busy machine makes everything slower,
with slow readers and without them, so that only what they multiply counts.
"""

from __future__ import annotations

from typing import Final

import pytest

from bench.measure import measure

SOCKETS: Final = 200
KIB_PER_SOCKET_MAX: Final = 50
"""With as much, 5,000 have 250 MiB. Measured: 26 to 36."""

READERS: Final = 100
SLOW: Final = ("--readers", str(READERS), "--seconds", "0.5", "--steps", "200")
RATIO_MAX: Final = 4.0
"""Of the p50 of a step beside slow readers. Measured: 0.9 to 1.3; it was 50 for those who follow an
agent, when each of them read its news for itself."""

MIB_PER_READER_MAX: Final = 1.2
"""Measured: 0.2 to 0.7; it was 2 for a list of events that was built whole."""


@pytest.mark.parametrize("kind", ["worker", "agent"])
def test_an_idle_socket_costs_some_kibibytes(kind: str) -> None:
    """All have joined and are answered a heartbeat."""
    found = measure(
        "bench.idle_sockets", ("--kind", kind, "--sockets", str(SOCKETS), "--seconds", "0.1")
    )
    assert found["open"] == SOCKETS
    assert found["kib_per_socket"] < KIB_PER_SOCKET_MAX


@pytest.mark.parametrize("kind", ["stream", "agent", "get"])
def test_slow_readers_cost_bounded_memory_and_nobody_elses_time(kind: str) -> None:
    """They take one byte a second."""
    found = measure("bench.slow_readers", ("--kind", kind, *SLOW))
    assert found["p50_ratio"] < RATIO_MAX, found
    assert found["added_mib"] < READERS * MIB_PER_READER_MAX, found
