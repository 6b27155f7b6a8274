"""What a figure depends on besides the code: the machine, the versions, what else was running."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import apsw


def cpu() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def described() -> list[str]:
    """Return lines that describe this machine, without its name."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        (
            f"- {datetime.datetime.now(tz=datetime.UTC).date()}, {os.cpu_count()} cores ({cpu()}), "
            f"{platform.system()} {platform.release().split('-')[0]}"
        ),
        (
            f"- {platform.python_implementation()} {platform.python_version()}, "
            f"SQLite {apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"
        ),
        f"- load average at the start: {load}",
    ]
