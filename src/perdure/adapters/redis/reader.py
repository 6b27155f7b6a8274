"""The reader: questions on a line of their own, all that wait in one go."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec

from perdure.adapters.redis.realm import Realm
from perdure.adapters.redis.script import Script
from perdure.adapters.redis.writer import list_of
from perdure.core.errors import InvalidInput, PerdureError

QUESTIONS_MAX = 32
"""In one go: the server does nothing else meanwhile, and each may ask for much."""

_encode = msgspec.msgpack.Encoder().encode


class Reader:
    """Asks questions in the order in which they come; none changes anything."""

    def __init__(self, realm: Realm, script: Script) -> None:
        self._realm = realm
        self._script = script
        self._queue: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._news = asyncio.Event()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    async def ask(self, *question: Any) -> Any:
        """Return the answer to one question. Raises `Unavailable`, and `InvalidInput`."""
        try:
            encoded = _encode(question)
        except (OverflowError, ValueError) as error:
            raise InvalidInput(f"there is nothing with such a name or number: {error}") from None
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append((encoded, future))
        self._news.set()
        return await future

    async def stop(self) -> None:
        """Answer what was asked."""
        self._stopping = True
        self._news.set()
        await self._task

    async def _run(self) -> None:
        while self._queue or not self._stopping:
            if not self._queue:
                self._news.clear()
                await self._news.wait()
                continue
            count = min(len(self._queue), QUESTIONS_MAX)
            batch = [self._queue.popleft() for _ in range(count)]
            await self._answer([one for one in batch if not one[1].done()])

    async def _answer(self, batch: list[tuple[bytes, asyncio.Future[Any]]]) -> None:
        if not batch:
            return
        asked = list_of([question for question, _ in batch])
        now = self._loop.time()
        try:
            answers = await self._realm.run(self._script, lambda: (asked,), now)
        except PerdureError as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(type(error)(str(error)))
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
