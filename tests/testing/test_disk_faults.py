"""After an error of the disk nothing is told, nothing is written, and nothing is lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from perdure.adapters.sqlite import log
from perdure.adapters.stores.sqlite import writer
from perdure.testing.disk_faults import ERRORS, faults, survey
from perdure.testing.disk_workload import reference

PARTS = 8
CONTROL = {"part": 3, "parts": 11}
"""Every eleventh fault is enough to see that the judge can say no."""
STORE = "sqlite:///store.db"
RUN = ("run", "filler.py:filler", "go", "--idempotency-key", "the one run")
UNAVAILABLE = 11


# ------------------------------------------------------------------------- every I/O operation


@pytest.mark.parametrize("part", range(PARTS))
def test_every_error_at_every_operation_is_survived(part: int) -> None:
    found = survey(part=part, parts=PARTS)
    assert not found.wrong, "\n".join(["", *map(str, found.wrong)])


def test_there_are_enough_faults_of_every_kind() -> None:
    planned = Counter(fault.error for fault in faults())
    assert sum(planned.values()) * 3 > 5_000
    assert planned.keys() == {error for errors in ERRORS.values() for error in errors}


# ---------------------------------------------------------------------------- negative controls

Transact = writer.Writer._transact
Fail = writer.Writer._fail


def retry_in_place(self: writer.Writer, batch: Any) -> Any:
    """Try again what failed, with the same connection."""
    try:
        return Transact(self, batch)
    except apsw.Error:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        return Transact(self, batch)


def tell_before_the_commit(self: writer.Writer, batch: Any) -> Any:
    """Take an error of the disk for a warning."""
    try:
        return Transact(self, batch)
    except apsw.Error:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        return []


def tidy_up_when_closing(self: writer.Writer, error: BaseException) -> None:
    """Stop, and let closing make its checkpoint."""
    Fail(self, error)
    self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "retries in place": (writer.Writer, "_transact", retry_in_place, "told of the fault"),
    "tells all the same": (writer.Writer, "_transact", tell_before_the_commit, "told of the fault"),
    "writes when closing": (writer.Writer, "_fail", tidy_up_when_closing, "went on writing"),
    "trusts the cache": (log, "make_durable", lambda db: None, "not kept after"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_store_that_goes_on_after_an_error_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference("FULL")
    owner, method, mutation, why = MUTANTS[name]
    monkeypatch.setattr(owner, method, mutation)
    assert any(why in one.why for one in survey(**CONTROL).wrong)


# --------------------------------------------------------------------------- the real process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the agent in it."""
    shutil.copy(Path(__file__).with_name("disk_filler.py"), tmp_path / "filler.py")
    return tmp_path


def perdure(
    folder: Path, *arguments: str, before: tuple[str, ...] = (), file_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line, under another program, or where no file may become larger."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    command = [*before, sys.executable, "-m", "perdure", *arguments, "--store", STORE]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )


def looked(folder: Path) -> Counter[str]:
    """Return how often each step was really done."""
    ledger = folder / "ledger"
    return Counter(ledger.read_text().split()) if ledger.exists() else Counter()


class TestARealProcess:
    """It says what happened, leaves, and goes on when there is room again."""

    @pytest.mark.parametrize("file_bytes", [220_000, 330_000, 450_000])
    def test_where_a_file_may_not_grow(self, folder: Path, file_bytes: int) -> None:
        full = perdure(folder, *RUN, file_bytes=file_bytes)
        assert full.returncode == UNAVAILABLE, full.stderr
        assert "takes nothing more until it is opened again" in full.stderr
        assert "Traceback" not in full.stderr
        done = looked(folder)
        listed = perdure(folder, "runs", "list", file_bytes=file_bytes)
        assert listed.returncode == 0, listed.stderr
        assert "filler" in listed.stdout
        again = perdure(folder, *RUN, file_bytes=file_bytes)
        assert again.returncode == UNAVAILABLE, again.stderr
        mended = perdure(folder, *RUN)
        assert mended.returncode == 0, mended.stderr
        assert mended.stdout.rstrip().endswith("done")
        self.nothing_was_done_again(folder, done)

    @pytest.mark.parametrize("error", ["fdatasync:error=EIO", "pwrite64:error=ENOSPC"])
    @pytest.mark.parametrize("at", [12, 19, 26])
    def test_where_the_kernel_says_no(self, folder: Path, error: str, at: int) -> None:
        can_trace(folder)
        inject = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,pwrite64")
        before = (*inject, "-e", f"inject={error}:when={at}+")
        failed = perdure(folder, *RUN, before=before)
        assert failed.returncode == UNAVAILABLE, failed.stderr
        assert "Traceback" not in failed.stderr
        done = looked(folder)
        mended = perdure(folder, *RUN)
        assert mended.returncode == 0, mended.stderr
        assert mended.stdout.rstrip().endswith("done")
        self.nothing_was_done_again(folder, done)

    @staticmethod
    def nothing_was_done_again(folder: Path, done: Counter[str]) -> None:
        """What was recorded is not done again; the last one may not have been."""
        repeated = [n for n, times in looked(folder).items() if times > 1]
        last = max(map(int, done), default=-1)
        assert set(repeated) <= {str(last)}
        assert len(looked(folder)) == 12


def can_trace(folder: Path) -> None:
    """Skip, and say so, where errors of the kernel cannot be injected."""
    why = "strace is not installed"
    if shutil.which("strace"):
        tried = subprocess.run(
            ["strace", "-f", "-o", "/dev/null", "true"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        why = "" if tried.returncode == 0 else f"nothing may be traced here: {tried.stderr.strip()}"
    if why:
        pytest.skip(f"NOT RUN: errors of the real kernel: {why}. The disk in memory has them all")
