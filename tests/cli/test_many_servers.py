"""Two `perdure server` processes on one store: any of them takes anything, and one may go."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from perdure.testing.servers import ServerMissing
from perdure.testing.servers.nats import NatsServer
from tests.cli.terminal import Terminal

KEY = "many-servers-0123456789abcdef"
PEPPER = "the same pepper for all of them, and long"
SECONDS_MAX = 60


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """Return a directory with an agent file."""
    return Terminal(tmp_path)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[str]:
    """Return the URL of a store in a JetStream of its own."""
    try:
        server = NatsServer.start()
    except ServerMissing as missing:
        pytest.skip(f"no server: {missing}")
    with server:
        yield f"{server.url}?name=many"


@pytest.fixture(params=["nats"])
def store(request: pytest.FixtureRequest) -> str:
    """Return the URL of a store that nobody has used."""
    url: str = request.getfixturevalue(request.param)
    return url


class Server:
    """A server process, as somebody with curl sees it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx2.Client(
            base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """Return the answer, which has to have this status."""
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def until(self, path: str, holds: Callable[[Any], bool]) -> Any:
        """Ask until something holds of the data; return it."""
        deadline = time.monotonic() + SECONDS_MAX
        while not holds(found := self.ask("GET", path)["data"]):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found


@contextmanager
def serving(terminal: Terminal, store: str, name: str) -> Iterator[Server]:
    """Run a server on a store until it is done with."""
    process = terminal.start(
        *("server", "--port", "0", "--name", name),
        PERDURE_STORE=store,
        PERDURE_KEY_PEPPER=PEPPER,
        PERDURE_BOOTSTRAP_KEY=KEY,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("perdure is at "), line + process.communicate()[1]
            server = Server(process, line.split()[3])
            with server.http:
                yield server
        finally:
            process.kill()


def test_a_run_crosses_servers_and_outlives_one(terminal: Terminal, store: str) -> None:
    """Asked for here, executed by a worker there, and finished although its server is killed."""
    with ExitStack() as stack:
        a, b, c = (
            stack.enter_context(serving(terminal, store, name)) for name in ("eu-1", "eu-2", "eu-3")
        )
        ready = httpx2.get(f"{a.url}/ready").json()
        assert ready["status"] == "ok"
        assert ready["durability"] in ("os", "fsynced")
        urls = {"eu-1": a.url, "eu-2": b.url, "eu-3": c.url}
        a.until("/nodes", lambda nodes: {one["name"]: one["url"] for one in nodes} == urls)
        worker = terminal.start("worker", "agents.py:helper", PERDURE_URL=b.url, PERDURE_KEY=KEY)
        stack.enter_context(worker)
        stack.callback(worker.kill)
        [agent] = b.until("/agents", bool)
        sent = a.ask("POST", f"/agents/{agent['id']}/messages", {"content": "count"}, 202)
        assert sent["durability"] == ready["durability"]
        run = c.until(f"/runs/{sent['run_id']}", lambda run: run["status"] == "completed")
        assert run["output"] == "done: 1"
        assert (terminal.directory / "ran.txt").read_text() == "count_files\n"
        asks = a.ask("POST", f"/agents/{agent['id']}/messages", {"content": "ask"}, 202)
        asking = f"/runs/{asks['run_id']}"
        c.until(asking, lambda run: run["status"] == "waiting")
        a.process.kill()
        c.ask("POST", f"{asking}/reply", {"answer": "yes"}, 202)
        c.until(asking, lambda run: run["status"] == "completed")
        drained = b.ask("POST", "/nodes/eu-3/drain", status=202)["data"]
        assert drained["name"] == "eu-3"
        assert c.process.wait(SECONDS_MAX) == 0
        b.until("/nodes", lambda nodes: [node["name"] for node in nodes] == ["eu-2"])
        b.process.send_signal(signal.SIGTERM)
        assert b.process.wait(SECONDS_MAX) == 0
