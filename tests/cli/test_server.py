"""`perdure dev` as a newcomer uses it: one command, then HTTP, and kills at bad moments."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from perdure.policy.policy import Policy

ROOT = Path(__file__).parents[2]
REFUND = ROOT / "examples" / "refund.py"
RULES = ROOT / "examples" / "refund.toml"
READY_SECONDS_MAX = 30
SECONDS_MAX = 60


class Server:
    """A `perdure dev` at work, as somebody with curl sees it."""

    def __init__(self, process: subprocess.Popen[str], url: str, key: str) -> None:
        self.process = process
        self.url = url
        self.key = key
        self.http = httpx2.Client(
            base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {key}"}, timeout=30
        )

    def get(self, path: str) -> Any:
        """Return what is under `data`."""
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def post(self, path: str, body: Any, status: int = 202) -> Any:
        """Return the answer."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def govern(self) -> None:
        """Put the rules of the example in force."""
        policy = Policy.from_toml(RULES.read_text(encoding="utf-8"))
        answer = self.http.put("/policy", json={"policy": json.loads(policy.body)})
        assert answer.status_code == 200, answer.text

    def until(self, run: int, status: str) -> Any:
        """Wait until a run stands so; return it."""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            found = self.get(f"/runs/{run}/wait?timeout=5")
            if found["status"] == status:
                return found
            assert found["status"] not in ("completed", "failed"), found
        raise AssertionError(f"run {run} is not {status} within {SECONDS_MAX} s")

    def worker_pid(self) -> int:
        """Return the process that executes its calls, once it has joined."""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            workers = self.get("/workers")
            if workers:
                return int(workers[0]["worker_id"].rpartition("-")[2])
            time.sleep(0.02)
        raise AssertionError("no worker came")


@contextmanager
def dev(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run `perdure dev` with the refund's agent in a folder, until the test is done with it."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "perdure",
            "dev",
            f"{REFUND}:support",
            "--port",
            "0",
            "--policy",
            str(RULES),
            *arguments,
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        key = process.stdout.readline().split()[1]
        server = Server(process, url, key)
        with server.http:
            yield server
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS_MAX)


def approve(server: Server, run: int) -> None:
    """Let the run's one payment be made."""
    server.post(f"/runs/{run}/decide", {"call": "1.1.t0", "decision": "approve"})


def test_a_refund_over_http_is_asked_for_approved_and_paid(tmp_path: Path) -> None:
    with dev(tmp_path) as server:
        [agent] = [one for one in until_agents(server) if one["name"] == "support"]
        sent = {"content": "Refund order 42: 1999 cents"}
        run = server.post(f"/agents/{agent['id']}/messages", sent)["run_id"]
        [wait] = server.until(run, "waiting")["waits"]
        assert wait["approval"]["arguments"] == {"order": "42", "cents": 1999}
        approve(server, run)
        done = server.until(run, "completed")
        [payment] = (tmp_path / "payments.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(payment)["receipt"] in done["output"]
        types = [event["event_type"] for event in server.get(f"/runs/{run}/events")]
        assert types[0] == "run_started"
        assert types[-1] == "run_completed"


def test_commands_of_the_folder_find_the_server_whatever_its_port(tmp_path: Path) -> None:
    with dev(tmp_path) as server:
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "talk with it: perdure chat support\n"
        server.worker_pid()

        def perdure(*arguments: str) -> str:
            told = subprocess.run(
                [sys.executable, "-m", "perdure", *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=SECONDS_MAX,
                check=True,
            )
            return told.stdout

        assert json.loads(perdure("agents", "list", "--json"))["name"] == "support"
        run = perdure("send", "support", "Refund order 42: 1999 cents").strip()
        server.until(int(run), "waiting")
        assert f"{run} 1.1.t0  May refund be called" in perdure("approvals", "list")
        assert "waiting" in perdure("runs", "list")
        assert (tmp_path / ".perdure" / "dev.url").read_text() == f"{server.url}\n"
    assert not (tmp_path / ".perdure" / "dev.url").exists()


def test_the_worker_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with dev(tmp_path) as server:
        [agent] = until_agents(server)
        sent = {"content": "Refund order 43: 500 cents"}
        run = server.post(f"/agents/{agent['id']}/messages", sent)["run_id"]
        server.until(run, "waiting")
        killed = server.worker_pid()
        os.kill(killed, signal.SIGKILL)
        approve(server, run)
        assert server.until(run, "completed")["output"].startswith("Refunded")
        assert server.worker_pid() != killed
        assert len((tmp_path / "payments.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_a_killed_server_goes_on_with_what_it_had(tmp_path: Path) -> None:
    with dev(tmp_path) as server:
        [agent] = until_agents(server)
        sent = {"content": "Refund order 44: 700 cents"}
        run = server.post(f"/agents/{agent['id']}/messages", sent)["run_id"]
        server.until(run, "waiting")
        worker = server.worker_pid()
        server.process.kill()
        server.process.wait()
        until_gone(worker)
    with dev(tmp_path) as server:
        approve(server, run)
        assert server.until(run, "completed")["output"].startswith("Refunded")


def test_a_server_that_is_stopped_lets_a_payment_end(tmp_path: Path) -> None:
    """Its worker is a process of somebody else's, and stays."""
    with served(tmp_path) as server:
        server.govern()
        worker = work(tmp_path, server)
        try:
            [agent] = until_agents(server)
            sent = {"content": "Refund order 45: 900 cents"}
            run = server.post(f"/agents/{agent['id']}/messages", sent)["run_id"]
            server.until(run, "waiting")
            approve(server, run)
            until_paid(tmp_path)
        finally:
            server.process.terminate()
            server.process.wait(timeout=SECONDS_MAX)
            worker.terminate()
            worker.wait(timeout=SECONDS_MAX)
    with served(tmp_path, key=server.key) as again:
        types = {event["event_type"] for event in again.get(f"/runs/{run}/events")}
        assert "tool_result" in types
        assert "tool_call_unknown" not in types


def test_a_payment_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    """Its worker goes on paying, comes back to the next server, and tells it the receipt."""
    with served(tmp_path) as server:
        server.govern()
        worker = work(tmp_path, server)
        try:
            [agent] = until_agents(server)
            sent = {"content": "Refund order 46: 1100 cents"}
            run = server.post(f"/agents/{agent['id']}/messages", sent)["run_id"]
            server.until(run, "waiting")
            approve(server, run)
            until_paid(tmp_path)
            server.process.kill()
            server.process.wait(timeout=SECONDS_MAX)
            with served(tmp_path, key=server.key, port=httpx2.URL(server.url).port or 0) as again:
                done = again.until(run, "completed")
                types = [event["event_type"] for event in again.get(f"/runs/{run}/events")]
        finally:
            worker.terminate()
            worker.wait(timeout=SECONDS_MAX)
    [payment] = (tmp_path / "payments.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(payment)["receipt"] in done["output"]
    assert "tool_call_unknown" not in types
    assert "probe" not in json.dumps(types)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with dev(tmp_path) as server:
        worker = server.worker_pid()
        server.process.send_signal(number)
        assert server.process.wait(timeout=SECONDS_MAX) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert not list((tmp_path / ".perdure").glob("*-wal"))


@contextmanager
def served(folder: Path, key: str | None = None, port: int = 0) -> Iterator[Server]:
    """Run `perdure server` in a folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", "server", "--port", str(port)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        if key is None:
            link = process.stdout.readline().split()[-1]
            key = set_up(link, process.stdout.readline())
        server = Server(process, url, key)
        with server.http:
            yield server
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS_MAX)


def set_up(link: str, said: str) -> str:
    """Make the first admin key with the code on the console."""
    [code] = re.findall(r"the code (\S+),", said)
    json_wanted = {"Accept": "application/json"}
    answer = httpx2.post(link, data={"code": code}, headers=json_wanted)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["key"])


def test_a_server_offers_its_setup_as_long_as_there_is_no_key(tmp_path: Path) -> None:
    with served(tmp_path, key="none yet") as server:
        assert server.http.get("/agents").status_code == 401
    with served(tmp_path) as server:
        key = server.key
        assert server.get("/agents") == []
    with served(tmp_path, key=key) as server:
        assert len(server.get("/api_keys")) == 1
        server.process.terminate()
        assert server.process.stdout is not None
        assert "/setup/" not in server.process.stdout.read()


def work(folder: Path, server: Server) -> subprocess.Popen[bytes]:
    """Start `perdure worker` for the refund's agent."""
    options = ["--url", server.url, "--key", server.key]
    command = [sys.executable, "-m", "perdure", "worker", f"{REFUND}:support", *options]
    return subprocess.Popen(command, cwd=folder)


def until_paid(folder: Path) -> None:
    """Wait until the payment has been made; its tool is still at work then."""
    deadline = time.monotonic() + SECONDS_MAX
    while not (folder / "payments.jsonl").exists():
        assert time.monotonic() < deadline, "nothing is paid"
        time.sleep(0.02)


def until_gone(pid: int) -> None:
    """Wait until a process has ended: nobody has to look for what a killed server leaves behind."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} outlives its server")


def until_agents(server: Server) -> list[Any]:
    """Wait for the worker to define its agents; return them."""
    server.worker_pid()
    found: list[Any] = server.get("/agents")
    return found
