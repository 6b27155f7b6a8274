"""A real server whose files may not grow: what it says, what it keeps, and how it goes on."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

KEY = "nrn_a-key-that-was-given-from-outside"
UNAVAILABLE = 11
SECONDS_MAX = 60
AGENT = {"system_prompt": "x" * 100_000, "status": "idle"}
NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Server:
    """A `perdure server`, and how large its files may become."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        headers = {"Authorization": f"Bearer {KEY}"}
        self.http = httpx2.Client(base_url=f"{url}/api/v1", headers=headers, timeout=30)

    def limit(self, file_bytes: int) -> None:
        """Let no file of it become larger from now on."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (file_bytes, NO_LIMIT[1]))

    def make(self, name: str) -> httpx2.Response:
        """Ask for an agent: a write of 100 KB to the catalog."""
        return self.http.post("/agents", json={"name": name, **AGENT})

    def names(self) -> set[str]:
        """Return the names of the agents that are there."""
        answer = self.http.get("/agents")
        assert answer.status_code == 200, answer.text
        return {one["name"] for one in answer.json()["data"]}


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Run `perdure server` in a folder; it is killed at the end, without a chance to tidy up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", "server", "--port", "0"],
        cwd=folder,
        env={**os.environ, "PERDURE_BOOTSTRAP_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        server = Server(process, process.stdout.readline().split()[3])
        with server.http:
            yield server
    finally:
        process.kill()
        process.communicate(timeout=SECONDS_MAX)


def test_a_catalog_that_cannot_be_written_is_503_and_goes_on_when_it_can(tmp_path: Path) -> None:
    """What was answered with 201 is there after a kill, and nothing else is in its way."""
    log = tmp_path / ".perdure" / "catalog.db-wal"
    with served(tmp_path) as server:
        told = {name for name in ("a", "b") if server.make(name).status_code == 201}
        assert told == {"a", "b"}
        server.limit(log.stat().st_size + 4_096)
        for name in ("c", "d"):
            refused = server.make(name)
            assert refused.status_code == 503, refused.text
            assert "catalog.db failed" in refused.json()["error"]
            assert server.names() == told
        server.limit(NO_LIMIT[0])
        answers = [until_it_goes_on(server, "c"), server.make("e")]
        assert [one.status_code for one in answers] == [201, 201]
        told |= {"c", "e"}
        assert server.names() == told
    with served(tmp_path) as server:
        assert server.names() == told


def until_it_goes_on(server: Server, name: str) -> httpx2.Response:
    """Ask until the file was opened again, which is tried once in a second."""
    for _ in range(100):
        answer = server.make(name)
        if answer.status_code != 503:
            return answer
        signal.sigtimedwait([], 0.05)
    raise AssertionError("it does not go on")


@pytest.mark.parametrize("grows", [4_096, 70_000])
def test_a_session_store_that_cannot_be_written_ends_the_server_with_words(
    tmp_path: Path, grows: int
) -> None:
    """No message is accepted that is not kept; the next process goes on with what was."""
    log = tmp_path / ".perdure" / "server.db-wal"
    told: dict[int, Any] = {}
    with served(tmp_path) as server:
        agent = server.make("a").json()["data"]["id"]
        for number in range(50):
            if number == 20:  # its log is the largest file by then, and fails first
                server.limit(log.stat().st_size + grows)
            body = {"content": f"{number} " + "x" * 30_000}
            answer = server.http.post(f"/agents/{agent}/messages", json=body)
            if answer.status_code != 202:
                assert answer.status_code == 503, answer.text
                break
            told[answer.json()["run_id"]] = body["content"]
        assert len(told) >= 20
        _, words = server.process.communicate(timeout=SECONDS_MAX)
        assert server.process.returncode == UNAVAILABLE, words
        assert re.search(
            r"server\.db failed and takes nothing more until it is opened again", words
        )
        assert "Traceback" not in words
    with served(tmp_path) as server:
        runs = server.http.get("/runs", params={"limit": 100}).json()["data"]
        kept = {run["id"]: run["input"]["user_message"] for run in runs}
        assert told.items() <= kept.items()
        body = {"content": "again"}
        assert server.http.post(f"/agents/{agent}/messages", json=body).status_code == 202
