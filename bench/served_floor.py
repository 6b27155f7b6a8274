"""The floor of a served call: the same payloads to an echo worker and back, and into a bare store.

One WebSocket, one JSON frame each way for each call; the payload that comes back is appended as
`bench.floor` appends it, and the next call is sent when that is durable. There is no protocol: a
frame is a number and a payload.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen

from bench import workload
from bench.floor import Floor


class ServedFloor(Floor):
    """The floor, with a socket in between."""

    def __init__(self, folder: Path, book: workload.Book) -> None:
        super().__init__(folder, book)
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket: Any = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._sent = 0

    async def talk(self, socket: ServerConnection) -> None:
        """Take in what the echo worker answers."""
        self._socket = socket
        self.joined.set_result(None)
        async for frame in socket:
            number, payload = msgspec.json.decode(frame)
            self._waiting.pop(number).set_result(payload)

    async def call(self, payload: Any) -> Any:
        """Send a payload; return it as it came back."""
        self._sent += 1
        number = self._sent
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(msgspec.json.encode([number, payload]).decode())
        return await answer

    async def run(self, number: int, steps: int) -> None:
        """Make the calls of a run, each when the one before is durable."""
        await self.append(number, 0, {"message": workload.prompt(number)})
        for turn in range(steps):
            reply = await self.call(workload.reply(turn))
            self._book.model_called()
            await self.append(number, 2 * turn + 1, reply)
            result = await self.call(workload.result(turn))
            self._book.tool_called()
            await self.append(number, 2 * turn + 2, result)
        await self.append(number, 2 * steps + 1, {"answer": "done"})


ECHO = """
import asyncio, sys
import msgspec
from websockets.asyncio.client import connect

async def main():
    async with connect(sys.argv[1], compression=None) as socket:
        async for frame in socket:
            number, payload = msgspec.json.decode(frame)
            await socket.send(msgspec.json.encode([number, payload]).decode())

asyncio.run(main())
"""


async def open_served_floor(folder: Path, book: workload.Book) -> ServedFloor:
    """Open the floor, and start its echo worker."""
    floor = ServedFloor(folder, book)
    server = await listen(floor.talk, "127.0.0.1", 0, compression=None)
    port = next(iter(server.sockets)).getsockname()[1]
    await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, f"ws://127.0.0.1:{port}")
    await floor.joined
    return floor


if __name__ == "__main__":
    workload.main(open_served_floor)
