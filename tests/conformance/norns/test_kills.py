"""The real server and the official SDK's worker, killed after each event of a run's log."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from perdure.testing.witness import Seen, look
from tests.conformance.norns.house import (
    DEADLINE_SECONDS,
    House,
    Program,
    call,
    script,
    until,
)

SAID = script(
    [call("look", thing="the sky")],
    [call("charge", amount=5)],
    [call("ask_human", question="sure?")],
    [call("wait", seconds=1)],
    [call("charge", amount=6)],
    "done",
)
HOUSES = 4
"""The SDK waits three seconds before it comes back: so the deaths are in several houses at once."""


class Brake:
    """Lets a server go on each time that it halts, but for the one time that is asked for."""

    def __init__(self, store: Path) -> None:
        self.versions: set[int] = set()
        self._store = store
        self._before: set[str] = set()
        self._at: int | None = None
        self._stands = asyncio.Event()
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._task = asyncio.ensure_future(self._drive())

    async def halt_at(self, at: int) -> None:
        """Have the server halt once the log of the next new run has so many events."""
        newest = await self._newest()
        self._before = set() if newest is None else {str(newest.session)}
        self._at = at

    async def halted(self) -> None:
        """Return when the server halts there."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._stands.wait()

    async def go_on(self) -> None:
        """Let the server go on."""
        self._at = None
        self._stands.clear()
        await asyncio.get_running_loop().sock_sendall(self._ours, b".")

    async def close(self) -> None:
        """Halt no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._ours.close()
        self.theirs.close()

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(self._ours, 1):
                newest = await self._newest()
                known = newest is not None and str(newest.session) in self._before
                version = -1 if newest is None or known else len(newest.records)
                self.versions.add(version)
                if self._at is not None and version >= self._at:
                    self._stands.set()
                else:
                    await loop.sock_sendall(self._ours, b".")

    async def _newest(self) -> Seen | None:
        return next(iter((await look(self._store, runs=1)).values()), None)


class Told(NamedTuple):
    """What a run came to, as everybody who had to do with it tells it."""

    run: dict[str, Any]
    transcript: list[dict[str, Any]]
    events: list[str]
    journal: list[str]


class Place:
    """A house whose server halts, and its worker."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.house = House(folder, python)
        self.brake: Brake
        self._worker: Program

    async def open(self) -> None:
        """Start both."""
        await self.start_server()
        self._worker = await self.house.worker()

    async def start_server(self) -> None:
        """Start a server."""
        self.brake = Brake(self.house.folder / "server.db")
        await self.house.node(self.brake.theirs.fileno())

    async def kill_server(self) -> None:
        """Kill the server where it stands, and start it again."""
        await self.house.kill_node()
        await self.brake.close()
        await self.start_server()

    async def kill_worker(self) -> None:
        """Kill the worker while the server stands, and start it again."""
        await self._worker.end(signal.SIGKILL)
        self._worker = await self.house.start_worker()
        await self.brake.go_on()

    async def carry_out(self, name: str) -> Told:
        """Have a run carried out by somebody who asks again whatever nobody answered."""
        begun = len(self.house.journal)
        (agent,) = (await self._persist("GET", "/agents"))["data"]
        path, body = f"/agents/{agent['id']}/messages", {"content": SAID}
        run = (await self._persist("POST", path, body, **{"Idempotency-Key": name}))["run_id"]

        async def over() -> Any:
            found = (await self._persist("GET", f"/runs/{run}"))["data"]
            if found["status"] == "waiting":
                await self._persist("POST", f"/runs/{run}/reply", {"answer": "yes"})
            return found if found["status"] in ("completed", "failed") else None

        found = await until(over)
        session = (await self._persist("GET", f"/sessions/{found['conversation_id']}"))["data"]
        events = (await self._persist("GET", f"/runs/{run}/events"))["data"]
        return Told(
            {key: found[key] for key in ("status", "output", "failure_metadata")},
            [{**message, "run_id": None} for message in session["messages"]],
            [event["event_type"] for event in events],
            self.house.journal[begun:],
        )

    async def _persist(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        async def answer() -> Any:
            with contextlib.suppress(httpx2.TransportError):
                return await self.house.ask(method, path, body, **headers)

        status, answered = await until(answer)
        assert status in (200, 202, 409), answered
        return answered

    async def close(self) -> None:
        """End everything."""
        await self.house.close()
        await self.brake.close()


@contextlib.asynccontextmanager
async def places(folder: Path, python: Path) -> AsyncIterator[list[Place]]:
    """Open several places."""
    found = []
    for number in range(HOUSES):
        (folder / str(number)).mkdir()
        found.append(Place(folder / str(number), python))
    try:
        await asyncio.gather(*(place.open() for place in found))
        yield found
    finally:
        await asyncio.gather(*(place.close() for place in found))


@pytest.mark.parametrize("victim", ["server", "worker"])
async def test_a_death_after_any_event_changes_nothing(
    tmp_path: Path, sdk_python: Path, victim: str
) -> None:
    """The same words, each effect and each model call once, whoever is killed wherever."""
    async with places(tmp_path, sdk_python) as (first, *others):
        undisturbed = await first.carry_out("undisturbed")
        assert undisturbed.run["output"] == "done"
        assert [undisturbed.journal.count(f"charged {amount}") for amount in (5, 6)] == [1, 1]
        deaths = sorted(first.brake.versions - {-1})
        assert deaths[0] == 0, "accepted, and nothing decided"
        assert len(deaths) > 12

        async def die(place: Place, at: int) -> None:
            await place.brake.halt_at(at)
            running = asyncio.ensure_future(place.carry_out(f"{victim} after {at}"))
            await place.brake.halted()
            await (place.kill_server if victim == "server" else place.kill_worker)()
            assert (at, await running) == (at, undisturbed)

        async def die_often(place: Place) -> None:
            while deaths:
                await die(place, deaths.pop())

        await asyncio.gather(*(die_often(place) for place in (first, *others)))
