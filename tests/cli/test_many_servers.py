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
from click.testing import CliRunner

from perdure import Agent, Runtime
from perdure.bootstrap import open_service
from perdure.cli.main import main
from perdure.core.errors import StoreRefused
from perdure.testing.servers import ServerMissing
from perdure.testing.servers.nats import NatsServer
from perdure.testing.servers.postgres import PostgresServer
from tests.adapters.redis_servers import shared as shared_redis
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


@pytest.fixture(params=["postgres", "redis", "nats"])
def store(request: pytest.FixtureRequest) -> str:
    """Return the URL of a store that nobody has used."""
    if request.param == "redis":
        return shared_redis().fresh_url()
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.fresh_database()
    url: str = request.getfixturevalue("nats")
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


def test_a_run_crosses_servers_and_outlives_one(
    terminal: Terminal, postgres: PostgresServer
) -> None:
    """Asked for here, executed by a worker there, and finished although its server is killed."""
    store = postgres.fresh_database()
    with ExitStack() as stack:
        a, b, c = (
            stack.enter_context(serving(terminal, store, name)) for name in ("eu-1", "eu-2", "eu-3")
        )
        ready = httpx2.get(f"{a.url}/ready").json()
        assert ready["status"] == "ok"
        assert ready["durability"] == "fsynced"
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


REFUSED = [
    (["--cluster", "redis://h"], "cannot have a catalog or a cluster that others share"),
    (["--catalog", "nats://h"], "cannot have a catalog or a cluster that others share"),
    (["--store", "redis://h", "--catalog", "sqlite:///c.db"], "share its catalog too"),
    (["--store", "redis://h", "--cluster", "memory://"], "share its cluster too"),
    (["--store", "redis://h", "--cluster", "mysql://h"], "the URL 'mysql://h' is not known"),
    (["--store", "postgres://u:hidden@h/d"], "the URL 'postgres://h/d' is not known"),
    (["--store", "postgres://u:hid/hidden@h/d?password=hidden"], "the URL 'postgres://h/d' is not"),
    (["--advertise", "eu-1:4000"], "expected http://HOST:PORT"),
    (["--store", "redis://h"], "set PERDURE_KEY_PEPPER to one text of 32 characters or more"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_servers_cannot_share_is_refused(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is opened; no password is shown."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["server", *options], env={"PERDURE_KEY_PEPPER": None})
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert "hid" not in done.stderr
    assert list(tmp_path.iterdir()) == []


async def test_a_server_with_another_pepper_is_refused(store: str, tmp_path: Path) -> None:
    """It would know none of the keys, and make some that no other server knows."""
    for pepper in (PEPPER, PEPPER):
        async with open_service(tmp_path, store, {"PERDURE_KEY_PEPPER": pepper}):
            pass
    with pytest.raises(StoreRefused, match="PERDURE_KEY_PEPPER is not the one"):
        async with open_service(tmp_path, store, {"PERDURE_KEY_PEPPER": PEPPER.upper()}):
            pass


async def test_runtimes_on_one_store_share_its_sessions(store: str) -> None:
    """What is sent to one can be asked of the other."""
    agent = Agent("bot", model=lambda request: f"I heard {request.messages[-1].content}.")
    async with Runtime(store, [agent], name="a") as a, Runtime(store, [agent], name="b") as b:
        run = await a.send("bot", "you")
        assert await (await b.run(run.id)).result() == "I heard you."
