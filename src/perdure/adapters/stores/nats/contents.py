"""What is too large for a message of a session, and what is kept under an address.

Large bodies are compressed; what is large even then is put aside in parts, by the hash of the
whole, before the message that refers to it. A part is written once: whoever writes it again writes
the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib

import msgspec

from perdure.adapters.nats.connection import (
    TEMPORARY,
    Connection,
    refusal,
    subject_part,
    temporary,
)
from perdure.adapters.nats.log import ANOTHER_IS_UNDER_WAY, ON_SUBJECT, WRONG_LAST_SEQUENCE
from perdure.core.errors import Unavailable

PLAIN_BYTES_MAX = 64 * 1024
INLINE_BYTES_MAX = 128 * 1024
PART_BYTES = 256 * 1024
PARTS_AT_ONCE_MAX = 8
FASTEST = 1
RETRY_SECONDS = 0.1
RESEND_SECONDS = 1.0
ADDRESSES_KNOWN_MAX = 10_000

PLAIN, ZIPPED, APART = b"p", b"z", b"a"


class Apart(msgspec.Struct, array_like=True, frozen=True):
    """Says where the parts are; they are compressed as a whole."""

    hash: str
    parts: int


class Contents:
    """The stream of what is put aside. Nothing in it is ever changed."""

    def __init__(self, connection: Connection, stream: str, prefix: str, patience: float) -> None:
        self._connection = connection
        self.stream = stream
        self._prefix = prefix
        self._patience = patience
        self._known: set[str] = set()
        self._slots = asyncio.Semaphore(PARTS_AT_ONCE_MAX)

    async def wrap(self, body: bytes) -> bytes:
        """Return what to write in the place of a body. Raises `Unavailable`."""
        if len(body) <= PLAIN_BYTES_MAX:
            return PLAIN + body
        zipped = await asyncio.to_thread(zlib.compress, body, FASTEST)
        if len(zipped) <= INLINE_BYTES_MAX:
            return ZIPPED + zipped
        key = hashlib.sha256(zipped).hexdigest()
        parts = [zipped[at : at + PART_BYTES] for at in range(0, len(zipped), PART_BYTES)]
        await asyncio.gather(*(self._put(f"part.{key}.{n}", part) for n, part in enumerate(parts)))
        return APART + msgspec.msgpack.encode(Apart(key, len(parts)))

    async def unwrap(self, wrapped: bytes) -> bytes:
        """Return the body that `wrap` was given. Raises `Unavailable`."""
        kind, rest = wrapped[:1], wrapped[1:]
        if kind == PLAIN:
            return rest
        if kind == ZIPPED:
            return zlib.decompress(rest)
        apart = msgspec.msgpack.decode(rest, type=Apart)
        names = [f"part.{apart.hash}.{n}" for n in range(apart.parts)]
        parts = await asyncio.gather(*map(self._get, names))
        if any(part is None for part in parts):
            raise Unavailable(f"{self.stream} has lost a part of {apart.hash}")
        zipped = b"".join(part for part in parts if part)
        return await asyncio.to_thread(zlib.decompress, zipped)

    def knows(self, address: str) -> bool:
        """Say whether it is certain that there are bytes under an address."""
        return address in self._known

    async def keep(self, address: str, content: bytes) -> None:
        """Keep bytes under an address, unless there are some. Raises `Unavailable`."""
        if address in self._known:
            return
        await self._put(f"blob.{subject_part(address)}", await self.wrap(content))
        if len(self._known) >= ADDRESSES_KNOWN_MAX:
            self._known.clear()
        self._known.add(address)

    async def find(self, address: str) -> bytes | None:
        """Return the bytes under an address. Raises `Unavailable`."""
        wrapped = await self._get(f"blob.{subject_part(address)}")
        return None if wrapped is None else await self.unwrap(wrapped)

    async def _get(self, name: str) -> bytes | None:
        async with self._slots:
            found = await self._connection.stored(self.stream, last=f"{self._prefix}.{name}")
        return None if found is None else found.body

    async def _put(self, name: str, body: bytes) -> None:
        """Write a message if its subject has none: then it has this one."""
        async with self._slots:
            loop = asyncio.get_running_loop()
            end = loop.time() + self._patience
            while not await self._put_once(f"{self._prefix}.{name}", body):
                if loop.time() > end:
                    raise Unavailable(f"{self.stream} did not take {name} in time")
                await asyncio.sleep(RETRY_SECONDS)

    async def _put_once(self, subject: str, body: bytes) -> bool:
        try:
            message = await self._connection.ask(
                subject, body, RESEND_SECONDS, headers={ON_SUBJECT: "0"}
            )
        except Unavailable:
            return False
        answer = json.loads(message.data)
        if "error" not in answer:
            return True
        error = refusal(answer["error"])
        if error.number == WRONG_LAST_SEQUENCE:
            return True
        if error.code == TEMPORARY or temporary(message) or error.number == ANOTHER_IS_UNDER_WAY:
            return False
        raise Unavailable(f"{self.stream} takes nothing: {error}")
