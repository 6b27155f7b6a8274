"""What memory a process has; not a number where the system does not tell."""

from __future__ import annotations

from pathlib import Path


def rss_mib() -> float:
    """Return this process's resident memory."""
    return _kib("/proc/self/status", "VmRSS:") / 1024


def pss_mib() -> float:
    """Return this process's memory, of what it shares with others only its share."""
    return _kib("/proc/self/smaps_rollup", "Pss:") / 1024


def _kib(path: str, name: str) -> float:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) for line in lines if line.startswith(name))
