"""The world outside: a process that keeps every effect, and is never killed.

It owns an append-only file for each world, and whoever wants something to happen asks it over a
Unix socket and waits until the line is on disk. So what the ledger says happened did happen, and
what it does not say did not, whenever whoever asked has died.

    with running_ledger() as socket:             # a process of its own
        ledger = Ledger(socket, Path("world.jsonl"))
        ledger.note("tool", tool="pay", call="1.1.t0")
        ledger.effect("key", honour_key=True, tool="pay")

`python -m perdure.testing.ledger SOCKET` serves until its standard input is closed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perdure.core.errors import PerdureError

START_SECONDS_MAX = 20
REQUEST_BYTES_MAX = 4 * 1024 * 1024
STDIN = 0


class Ledger:
    """A world, as its inhabitants see it. Made anew in each process; threads may share it."""

    def __init__(self, address: Path, world: Path) -> None:
        """Connect. Raises `OSError` if no ledger listens there."""
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(address))
        self._answers = self._socket.makefile("rb")
        self._ask({"do": "open", "world": str(world)})

    def note(self, what: str, **fields: Any) -> None:
        """Write down what happened."""
        self._ask({"do": "note", "line": {"what": what, "pid": self._pid, **fields}})

    def effect(self, key: str, *, honour_key: bool, **fields: Any) -> bool:
        """Let an effect happen. With `honour_key` it happens once, and a repeat returns False.

        So does an `attempt` that was ruled out.
        """
        line = {"key": key, "pid": self._pid, **fields}
        return bool(self._ask({"do": "effect", "line": line, "honour": honour_key}))

    def happened(self, key: str) -> bool:
        """Say whether the effect with this key has happened."""
        return bool(self._ask({"do": "ask", "key": key}))

    def rule_out(self, key: str, attempt: int) -> bool:
        """Say whether the effect has happened; if not, no attempt up to this one will do it.

        This is what makes an answer worth something while somebody may still be at it.
        """
        line = {"key": key, "attempt": attempt, "pid": self._pid}
        return bool(self._ask({"do": "rule out", "line": line}))

    def settle(self) -> None:
        """Wait until everybody else who had a connection to this world is gone, and heard."""
        self._ask({"do": "settle"})

    def close(self) -> None:
        """Leave."""
        self._answers.close()
        self._socket.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = self._answers.readline()
        if not answer:
            raise PerdureError("the ledger is gone: what happens from now on has no witness")
        return json.loads(answer)


def read_ledger(world: Path) -> list[dict[str, Any]]:
    """Return the lines of a world; none, if nothing has happened in it."""
    if not world.exists():
        return []
    return [json.loads(line) for line in world.read_bytes().splitlines()]


@contextmanager
def running_ledger() -> Iterator[Path]:
    """Run a ledger process until the block is left; yields its socket's path, which is short."""
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        address = Path(folder) / "s"
        process = start_ledger(address)
        try:
            yield address
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(START_SECONDS_MAX)


def start_ledger(address: Path) -> subprocess.Popen[bytes]:
    """Start a ledger process, and return once it listens. Raises `PerdureError`."""
    command = [sys.executable, "-m", "perdure.testing.ledger", str(address)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if process.stdout.readline() != b"listening\n":
        process.kill()
        process.wait()
        raise PerdureError(f"the ledger process did not start at {address}")
    process.stdout.close()
    return process


# ------------------------------------------------------------------------------------- the process


class _World:
    """One append-only file, and the keys of the effects in it."""

    def __init__(self, path: Path) -> None:
        self.keys: set[str] = set()
        self.ruled_out: dict[str, int] = {}
        for line in read_ledger(path):
            if line["what"] == "effect":
                self.keys.add(line["key"])
            elif line["what"] == "ruled out":
                self.ruled_out[line["key"]] = line["attempt"]
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def effect(self, line: dict[str, Any], honour: bool) -> str:
        """Return what becomes of an effect: it happens, is a repeat, or comes too late."""
        key = line["key"]
        if line.get("attempt", self.ruled_out.get(key, 0) + 1) <= self.ruled_out.get(key, 0):
            return "too late"
        if honour and key in self.keys:
            return "repeat"
        self.keys.add(key)
        return "effect"

    def append(self, line: dict[str, Any]) -> None:
        at = round(time.monotonic(), 6)
        os.write(self._fd, json.dumps({**line, "at": at}).encode() + b"\n")
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class _Peer:
    """A connection: what it has sent of its next request, and the world it is in."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pending = b""
        self.path = ""
        self.settling = False

    def answer(self, value: Any) -> None:
        with suppress(OSError):
            self.connection.sendall(json.dumps(value).encode() + b"\n")


class _Server:
    def __init__(self, address: Path) -> None:
        self._selector = selectors.DefaultSelector()
        self._peers: set[_Peer] = set()
        self._worlds: dict[str, _World] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(STDIN, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer until standard input is closed."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == STDIN:
                    if not os.read(STDIN, 1024):
                        return
                elif key.fileobj is self._listener:
                    self._welcome()
                else:
                    self._read(key.data)

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        peer = _Peer(connection)
        self._peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(65_536)
        except ConnectionError:
            data = b""
        if not data or len(peer.pending) > REQUEST_BYTES_MAX:
            self._leave(peer)
            return
        *requests, peer.pending = (peer.pending + data).split(b"\n")
        for request in requests:
            self._obey(peer, json.loads(request))

    def _leave(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        self._peers.discard(peer)
        left = [other for other in self._peers if other.path == peer.path]
        if not left and peer.path in self._worlds:
            self._worlds.pop(peer.path).close()
        self._settle(peer.path)

    def _settle(self, path: str) -> None:
        present = [peer for peer in self._peers if peer.path == path]
        if len(present) == 1 and present[0].settling:
            present[0].settling = False
            present[0].answer(True)

    def _obey(self, peer: _Peer, request: dict[str, Any]) -> None:
        do = request["do"]
        if do == "open":
            peer.path = request["world"]
            if peer.path not in self._worlds:
                self._worlds[peer.path] = _World(Path(peer.path))
            peer.answer(True)
            return
        if do == "settle":
            peer.settling = True
            self._settle(peer.path)
            return
        world = self._worlds[peer.path]
        if do == "ask":
            peer.answer(request["key"] in world.keys)
            return
        line = request["line"]
        if do == "rule out" and line["key"] in world.keys:
            peer.answer(True)
            return
        if do == "rule out":
            world.ruled_out[line["key"]] = line["attempt"]
            line = {"what": "ruled out", **line}
        elif do == "effect":
            line = {"what": world.effect(line, request["honour"]), **line}
        world.append(line)
        peer.answer(line["what"] == "effect")


def main() -> None:
    """Serve at the socket that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = _Server(Path(sys.argv[1]))
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main()
