"""Run what compose/three-nodes-postgres.yaml says as plain processes, and start again what dies.

    python deploy/three-nodes/up.py

Three servers, two workers and a PostgreSQL of its own on loopback, with everything that they keep
in a folder. The commands and the environments are those of the compose file; only where somebody
listens differs. The proxy is left out. Ctrl-C ends all of it, and what was in the database is gone;
logs and the ledger stay in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from perdure.testing.servers import free_port
from perdure.testing.servers.postgres import PostgresServer

HERE = Path(__file__).resolve().parent
COMPOSE = HERE.parent / "compose" / "three-nodes-postgres.yaml"
OURS = "perdure:"
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
AGAIN_SECONDS = 0.2
LEAVE_SECONDS = 45
VARIABLE = re.compile(r"\$\{(\w+)(?::[?-]([^}]*))?\}")


class Start(NamedTuple):
    """A process to be kept running."""

    name: str
    arguments: list[str]
    environment: dict[str, str]


def starts(services: Mapping[str, Any], places: Mapping[str, str], folder: Path) -> Iterator[Start]:
    """Give what the compose file runs of ours, as it is run on this machine.

    `places` says for each `service:port` of the file where that is here.
    """
    for name, service in services.items():
        if not service["image"].startswith(OURS):
            continue
        arguments = [_here(each, places, folder) for each in service["command"]]
        if arguments[0] == "server":
            port = places[f"{name}:4000"].rpartition(":")[2]
            arguments = ["server", "--host", "127.0.0.1", "--port", port, *arguments[5:]]
        environment = {
            key: _here(value, places, folder) for key, value in service["environment"].items()
        }
        environment["PERDURE_FOLDER"] = str(folder / name)
        yield Start(name, arguments, environment)


def _here(text: str, places: Mapping[str, str], folder: Path) -> str:
    text = VARIABLE.sub(lambda found: os.environ[found[1]], text)
    for there, here in places.items():
        text = text.replace(there, here)
    text = text.replace("/agents/", f"{HERE}/")
    return str(folder / "parcels") if text == "/var/lib/perdure" else text


class Processes:
    """Keeps processes running until it is told to stop."""

    def __init__(self, folder: Path, database: PostgresServer) -> None:
        self._folder = folder
        self._database = database
        self._database_pid = database.pid
        self._running: dict[str, tuple[Start, subprocess.Popen[bytes]]] = {}
        self._say("postgres", self._database_pid, "")

    def start(self, one: Start) -> None:
        """Start a process, and say which it is."""
        with (self._folder / f"{one.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "perdure", *one.arguments],
                env={**os.environ, **one.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process: it has them drain
            )
        self._running[one.name] = (one, process)
        self._say(one.name, process.pid, "perdure " + " ".join(one.arguments))

    def look(self) -> None:
        """Start again what has ended."""
        for one, process in list(self._running.values()):
            if process.poll() is not None:
                self._ended(one.name, process.pid, process.returncode)
                self.start(one)
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        ended = os.waitid(os.P_PID, self._database_pid, options)
        if ended is not None:
            self._ended("postgres", self._database_pid, -ended.si_status)
            self._database.kill()
            self._database.start_again()
            self._database_pid = self._database.pid
            self._say("postgres", self._database_pid, "")

    def stop(self) -> None:
        """End all of it: workers and servers drain."""
        processes = [process for _, process in self._running.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(LEAVE_SECONDS)

    def _say(self, name: str, pid: int, command: str) -> None:
        """Tell, and write down for whoever wants to kill it, which process it is."""
        place = self._folder / "pids" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"{pid}\n")
        print(f"{name:<8} {pid:>7}  {command}".rstrip(), flush=True)

    def _ended(self, name: str, pid: int, code: int) -> None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        print(f"{name:<8} {pid:>7}  ended by {how}; it is started again", flush=True)


def given_secrets(folder: Path) -> dict[str, str]:
    """Return the secrets that the compose file asks for: those of the folder, made if missing."""
    path = folder / "secrets.json"
    if not path.exists():
        names = sorted({name for name, _ in VARIABLE.findall(COMPOSE.read_text("utf-8"))})
        made = {name: secrets.token_hex(32) for name in names}
        with os.fdopen(os.open(path, NEW, 0o600), "w") as file:
            json.dump(made, file)
    found: dict[str, str] = json.loads(path.read_text())
    return found


def main() -> None:
    """Run until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("three-nodes"))
    parser.add_argument("--port", type=int, default=4001, help="of the first; 0: free ones")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(given_secrets(folder))
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever starts it with `&` ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    with PostgresServer.start(password=os.environ["POSTGRES_PASSWORD"]) as database:
        database.sql(f"CREATE ROLE perdure LOGIN PASSWORD '{os.environ['POSTGRES_PASSWORD']}'")
        database.sql("CREATE DATABASE perdure OWNER perdure")
        nodes = [name for name, one in services.items() if one.get("command", [""])[0] == "server"]
        ports = [options.port + at if options.port else free_port() for at in range(len(nodes))]
        places = {
            f"{name}:4000": f"127.0.0.1:{port}" for name, port in zip(nodes, ports, strict=True)
        }
        places["@postgres:5432"] = f"@127.0.0.1:{database.port}"
        processes = Processes(folder, database)
        for one in starts(services, places, folder):
            processes.start(one)
        lines = [os.environ["PERDURE_BOOTSTRAP_KEY"], *(f"http://127.0.0.1:{one}" for one in ports)]
        with os.fdopen(os.open(folder / "servers", NEW, 0o600), "w") as file:
            file.write("\n".join(lines))
        try:
            while True:
                time.sleep(AGAIN_SECONDS)
                processes.look()
        except KeyboardInterrupt:
            processes.stop()


if __name__ == "__main__":
    main()
