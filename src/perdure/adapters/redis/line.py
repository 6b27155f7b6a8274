"""Line: one connection, made anew when it is lost, on which answers come in the order of questions.

What was asked when it was lost may have been done, or not, or may be done yet: whoever asks has to
know how to ask again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from perdure.adapters.redis.place import Place
from perdure.core.errors import Unavailable

ANSWER_SECONDS_MAX = 3.0
"""Long enough for any batch, and short enough to notice in time that nobody answers."""

T = TypeVar("T")

Command = Sequence[bytes | str | int]
Greeting = Callable[["Line"], Awaitable[None]]


class Lost(Exception):
    """The line was lost, or could not be made; the message says how."""


class Line:
    """A connection to `place`; `greet` is called with it whenever it was made anew, or asked for.

    One exchange, connecting included, may take `answer_seconds_max`; then the line is given up.
    """

    def __init__(self, place: Place, greet: Greeting, answer_seconds_max: float) -> None:
        self.place = place
        self.connections = 0
        self._greet = greet
        self._is_to_greet = False
        self._answer_seconds_max = answer_seconds_max
        self._connection: Any = None

    async def ready(self) -> None:
        """Connect, if need be. Raises `Lost`, and what `greet` raises."""
        if self._connection is None:
            await self._within(self._connect())
        elif self._is_to_greet:
            await self._within(self._greet(self))
        self._is_to_greet = False

    def greet_again(self) -> None:
        """Greet once more before anything else is asked."""
        self._is_to_greet = True

    async def first(self) -> None:
        """Connect for the first time: whoever opens something is told at once what is wrong.

        Raises `Unavailable`, and what `greet` raises.
        """
        try:
            await self.ready()
        except Lost as error:
            raise Unavailable(f"{self.place.shown} cannot be reached: {error}") from None

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands at once and return their answers; those that are errors, as they are.

        Raises `Lost`, and what `greet` raises.
        """
        await self.ready()
        return await self._within(self.exchange(*commands))

    async def next(self, seconds: float) -> Any:
        """Return what the server says unasked; None if it says nothing for so long.

        Raises `Lost`, and what `greet` raises.
        """
        await self.ready()
        return await self._heeding(self._connection.read_response(True, timeout=seconds))

    async def say(self, command: Command) -> None:
        """Send a command, and leave its answer to `next`. Raises `Lost`."""
        await self.ready()
        await self._within(self._connection.send_packed_command(packed(command)))

    async def exchange(self, *commands: Command) -> list[Any]:
        """Do what `ask` does on the connection as it is; for those who greet."""
        connection = self._connection
        await connection.send_packed_command([*itertools.chain(*map(packed, commands))])
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                answers.append(error)
        return answers

    async def hang_up(self) -> None:
        """Close the connection, if there is one; the next question makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError, asyncio.TimeoutError):
                await connection.disconnect(nowait=True)

    async def _within(self, work: Awaitable[T]) -> T:
        """Await something on the connection, but not for ever."""

        async def in_time() -> T:
            try:
                async with asyncio.timeout(self._answer_seconds_max):
                    return await work
            except TimeoutError:
                raise Lost(f"no answer within {self._answer_seconds_max:g} s") from None

        return await self._heeding(in_time())

    async def _heeding(self, work: Awaitable[T]) -> T:
        """Await something on the connection, and give that up when it fails."""
        try:
            return await work
        except (RedisError, OSError) as error:
            await self.hang_up()
            raise Lost(_words(error)) from None
        except BaseException:
            # Answers that nobody has read would be taken for those of the next question.
            await self.hang_up()
            raise

    async def _connect(self) -> None:
        connection = self.place.connection(
            **self.place.options,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=None,
            client_name="perdure",
        )
        self._connection = connection
        await connection.connect()
        self.connections += 1
        await self._greet(self)


def packed(command: Command) -> list[bytes]:
    """Return a command as the protocol has it, in pieces."""
    pieces = [b"*%d\r\n" % len(command)]
    for part in command:
        body = part if type(part) is bytes else str(part).encode()
        pieces += (b"$%d\r\n" % len(body), body, b"\r\n")
    return pieces


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
