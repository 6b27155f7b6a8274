"""What a run is judged by: what the store was asked for, what came of it, and how long it took."""

from __future__ import annotations

import msgspec


class Figures(msgspec.Struct):
    """What happened in a scenario, from its first event to the end.

    Rates are those of the busiest second. Times are milliseconds; those of recovery run from what
    happened (a death, the store's return) until another node goes on with the session.
    """

    scenario: str
    nodes: int
    sessions: int
    virtual_s: float = 0.0
    lost: int = 0
    """Sessions that lost their owner, or were parked and fell due."""
    recovered: int = 0
    claims: int = 0
    claims_won: int = 0
    scans: int = 0
    scan_rows: int = 0
    renewals: int = 0
    fenced_nodes: int = 0
    """Nodes that lived, and lost their lease nevertheless."""
    scans_peak_s: int = 0
    claims_peak_s: int = 0
    renewals_peak_s: int = 0
    store_wait_max_ms: float = 0.0
    """How long a request waited at most before the store took it up."""
    store_busy: float = 0.0
    """How busy the store was on average, of all it can do."""
    recovery_p50_ms: float = 0.0
    recovery_p99_ms: float = 0.0
    recovery_max_ms: float = 0.0

    @property
    def wasted_claims(self) -> int:
        """Claims that found the session taken."""
        return self.claims - self.claims_won

    def told(self) -> str:
        """Return a line for people."""
        per_lost = f"{self.claims / self.lost:.2f}" if self.lost else "-"
        rows = f"{self.scan_rows / self.lost:.0f}" if self.lost else "-"
        return (
            f"{self.scenario:14s} {self.lost:8d} {self.recovered:9d} {per_lost:>11s} {rows:>9s}"
            f" {self.scans_peak_s:7d} {self.claims_peak_s:8d} {self.renewals_peak_s:6d}"
            f" {self.fenced_nodes:6d} {self.store_wait_max_ms:8.0f} {self.store_busy:5.2f}"
            f" {self.recovery_p50_ms / 1000:7.1f} {self.recovery_p99_ms / 1000:7.1f}"
            f" {self.recovery_max_ms / 1000:7.1f}"
        )


HEADER = (
    "scenario           lost recovered claims/lost rows/lost scans/s claims/s beats/s"
    " fenced wait ms  busy   p50 s   p99 s   max s"
)


class Counter:
    """Counts by the second of virtual time."""

    __slots__ = ("_now", "peak", "second", "total")

    def __init__(self) -> None:
        self.total = 0
        self.peak = 0
        self.second = -1
        self._now = 0

    def count(self, now_us: int) -> None:
        """Count one."""
        self.total += 1
        second = now_us // 1_000_000
        if second != self.second:
            self.second, self._now = second, 0
        self._now += 1
        self.peak = max(self.peak, self._now)


def percentile(ordered: list[int], part: float) -> float:
    """Return the value below which `part` of an ordered list is, or 0 of an empty one."""
    return float(ordered[min(len(ordered) - 1, int(part * len(ordered)))]) if ordered else 0.0
