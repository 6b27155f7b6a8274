"""The units: systemd takes them, what they start is ours, and they may do little."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import UNITS, Unit, unit

ANALYZE = shutil.which("systemd-analyze")
EXPOSURE_MAX = 2.0
"""Of 10, by `systemd-analyze security`: what it calls OK ends at 4.9."""

LEAVING_SECONDS = 35
WANTED = {
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "Restart": "always",
    "KillMode": "mixed",
    "UMask": "0077",
}


def problems(found: Unit) -> list[str]:
    """Return what is wrong with a unit, as far as it can be seen without systemd."""
    wrong = [
        f"{name} is {found.one(name)!r}, not {value!r}"
        for name, value in WANTED.items()
        if ("Service", name) not in found.settings or found.one(name) != value
    ]
    if found.one("User") in ("", "root"):
        wrong.append("it runs as root")
    if int(found.one("TimeoutStopSec") or 0) < LEAVING_SECONDS:
        wrong.append("it is killed before it has drained")
    if found.one("StateDirectoryMode") != "0700":
        wrong.append("others may read its folder")
    if re.search(r"KEY|TOKEN|PASSWORD|PEPPER|://", found.one("Environment")):
        wrong.append("a secret in its environment: that belongs into its EnvironmentFile")
    if found.one("ProcSubset"):
        wrong.append("ProcSubset hides /proc/mounts, by which network filesystems are known")
    if found.one("StartLimitIntervalSec", "Unit") != "0":
        wrong.append("it is given up after some starts")
    return wrong


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_as_it_must_be(path: Path) -> None:
    assert problems(unit(path)) == []


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("User=perdure", "User=root", "as root"),
        ("TimeoutStopSec=45", "TimeoutStopSec=10", "before it has drained"),
        ("Restart=always", "Restart=no", "Restart is 'no'"),
        ("KillMode=mixed", "KillMode=process", "KillMode"),
        ("ProtectSystem=strict", "", "ProtectSystem"),
        ("CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_CHOWN", "CapabilityBoundingSet"),
        ("PYTHONUNBUFFERED=1", "PERDURE_KEY=x", "a secret"),
        ("StartLimitIntervalSec=0", "", "given up"),
        ("UMask=0077", "UMask=0077\nProcSubset=pid", "/proc/mounts"),
    ],
)
def test_a_planted_mistake_is_found(was: str, becomes: str, said: str) -> None:
    text = UNITS[0].read_text("utf-8")
    assert was in text
    assert any(said in one for one in problems(unit(UNITS[0], text.replace(was, becomes, 1))))


def here(path: Path, folder: Path) -> Path:
    """Write a unit as it would stand on this machine, where perdure is somewhere else."""
    program = Path(sys.executable).with_name("perdure")
    copy = folder / path.name
    copy.write_text(path.read_text("utf-8").replace("/opt/perdure/bin/perdure", str(program)))
    return copy


@pytest.mark.skipif(ANALYZE is None, reason="no server: systemd-analyze (Debian: systemd)")
def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    """What it does not know it names, and goes on: so it must say nothing at all."""
    for path in UNITS:
        copy = here(path, tmp_path)
        done = analyze("verify", str(copy))
        ours = [line for line in done.stderr.splitlines() if path.name in line]
        assert ours == []
        copy.write_text(copy.read_text().replace("NoNewPrivileges", "NoNewPriviledges"))
        assert "NoNewPriviledges" in analyze("verify", str(copy)).stderr


@pytest.mark.skipif(ANALYZE is None, reason="no server: systemd-analyze (Debian: systemd)")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_hardly_exposed(path: Path, tmp_path: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(here(path, tmp_path)))
    [level] = re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(level) <= EXPOSURE_MAX


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze; no systemd has to be running."""
    assert ANALYZE is not None
    plain = {**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C"}
    return subprocess.run(
        [ANALYZE, *arguments], capture_output=True, text=True, timeout=60, env=plain, check=False
    )
