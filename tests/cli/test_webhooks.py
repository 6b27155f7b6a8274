"""Webhooks of a real server that is killed: what runs did is told, whenever it happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from perdure.server.signatures import verify

SECONDS_MAX = 60
RUNS, KILLS = 30, (1, 40)
"""The server is killed when so many more webhooks have come. A third death would be held against
runs that had got nowhere, and they would be tried one by one."""

AGENT = """
from perdure import Agent
echo = Agent("echo", model=lambda request: "done", instructions="Say so.")
"""


class Receiver:
    """Listens on the loopback, and keeps what it is told under its id."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, Any]] = {}
        self.count = 0
        self.raw: list[tuple[list[tuple[bytes, bytes]], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                receiver.raw.append((headers, body))
                receiver.told.setdefault(self.headers["webhook-id"], json.loads(body))
                receiver.count += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *said: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen meanwhile."""
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


@contextmanager
def dev(folder: Path) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """Run `perdure dev` where webhooks may go to the loopback."""
    allowed = {"PERDURE_WEBHOOK_NETWORKS": "127.0.0.1/32", "PERDURE_WEBHOOK_PORTS": "*"}
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", "dev", "agents.py:echo", "--port", "0"],
        cwd=folder,
        env={**os.environ, **allowed},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url, key = (process.stdout.readline().split()[n] for n in (3, 1))
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=f"{url}/api/v1", headers=headers, timeout=30) as client:
            yield process, client
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS_MAX)


def until(what: Callable[[], Any]) -> Any:
    """Wait for something, and return it."""
    deadline = time.monotonic() + SECONDS_MAX
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)
    return found


def test_a_killed_server_tells_what_its_runs_did(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    receiver = Receiver()
    sent: set[int] = set()
    with receiver.listening():
        for number, kill_at in enumerate((*KILLS, None)):
            before = receiver.count
            with dev(tmp_path) as (process, client):
                [agent] = until(lambda client=client: client.get("/agents").json()["data"])
                if number == 0:
                    made = client.post("/endpoints", json={"name": "ci", "url": receiver.url})
                    secret = made.json()["data"]["signing_secret"]
                for n in range(RUNS if kill_at else 0):
                    run = client.post(f"/agents/{agent['id']}/messages", json={"content": f"{n}"})
                    sent.add(run.json()["run_id"])
                if kill_at is not None:
                    until(lambda at=before + kill_at: receiver.count >= at)
                    process.kill()
                    process.wait()
                else:
                    until(lambda: len(receiver.told) >= 2 * len(sent))
        expected = {(run, type_) for run in sent for type_ in ("run.started", "run.completed")}
        told = [(one["data"]["run_id"], one["type"]) for one in receiver.told.values()]
        assert set(told) == expected
        assert len(told) == len(expected), "an event has one id, however often it comes"
        for headers, body in receiver.raw:
            verify("standard", secret, headers, body, round(time.time() * 1000))
