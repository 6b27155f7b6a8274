"""docs/operating/three-nodes.md, followed: its commands are run as they stand, with fewer orders.

So is the compose file that they name: its commands and environments, as processes of this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.files import ROOT
from tests.docs.pages import blocks

PAGE = ROOT / "docs" / "operating" / "three-nodes.md"
ORDERS = 40
SECONDS_MAX = 140
"""For all of it; a call in doubt is 30 s of it, since its worker may come back."""

LEAVE_SECONDS_MAX = 60


def terminals() -> Mapping[str, str]:
    """Return what the page has one type, terminal by terminal."""
    found = {
        block.mark.partition(":")[2].strip(): block.text
        for block in blocks(PAGE)
        if block.mark.startswith("terminal")
    }
    assert list(found) == ["1", "2", "3", "4"]
    return found


@contextmanager
def typing(text: str, folder: Path, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a terminal's commands in a clone, until the block is left; then Ctrl-C.

    As on a terminal, a command that fails ends nothing: who is to be killed may just be gone.
    """
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=folder,
            env={**os.environ, "PARCELS_SECONDS": "0.2"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(LEAVE_SECONDS_MAX)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone with its environment, and holds nothing yet."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no server: bash")
def test_the_page_can_be_followed_while_everything_is_killed(clone: Path) -> None:
    said, end = terminals(), time.monotonic() + SECONDS_MAX
    tally = said["2"].replace("1000", str(ORDERS))
    with typing(said["1"].replace("up.py", "up.py --port 0"), clone, "up.log") as up:
        until(clone / "up.log", "worker2", end, up)
        with typing(tally, clone, "tally.log") as counting:
            until(clone / "three-nodes" / "parcels" / "handed-over", "\n", end, counting)
            subprocess.run(["bash", "-e", "-c", said["3"]], cwd=clone, check=True)
            with typing(said["4"], clone, "kills.log"):
                until(clone / "up.log", "ended by SIGKILL", end, up, times=4)
            assert counting.wait(end - time.monotonic()) == 0, told(clone)
    counted = (clone / "tally.log").read_text()
    assert counted.endswith("each once\n")
    assert f"runs completed: {ORDERS} of {ORDERS}" in counted
    assert (clone / "up.log").read_text().count("ended by SIGKILL") >= 4


def until(
    log: Path, said: str, end: float, process: subprocess.Popen[bytes], times: int = 1
) -> None:
    """Wait until something was written often enough, by a process that goes on."""
    while not log.exists() or log.read_text().count(said) < times:
        if process.poll() is not None:
            found = log.read_text() if log.exists() else ""
            if "ServerMissing" in found:
                pytest.skip(f"no server: {found.strip().splitlines()[-1]}")
            raise AssertionError(f"it ended with {process.returncode}: {found}")
        assert time.monotonic() < end, f"{log.name} does not say {said!r} {times} times"
        time.sleep(0.05)


def told(clone: Path) -> str:
    """Return what everybody said, for a test that fails."""
    logs = [clone / "tally.log", clone / "up.log", *sorted((clone / "three-nodes").glob("*.log"))]
    return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)
