"""Script: a Lua script that is run until its answer is known, or until time is up.

It is run again whenever the line was lost, so it has to know what it has done already.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from perdure.adapters.redis.line import Command, Line, Lost
from perdure.core.errors import Broken, StoreRefused, Unavailable

WAIT_MS_MAX = 500
PAUSE_SECONDS_MIN = 0.02
PAUSE_SECONDS_MAX = 1.0

OTHER = "PERDUREOTHER"
"""What our scripts say where they do not find the identity that they expect."""
NOT_NOW = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS", "NOSCRIPT", "READONLY",
    "TRYAGAIN",
})  # fmt: skip
"""Nothing was done, and it is worth while to ask again."""
ADVICE = {
    "BUSY": "a script of somebody runs for too long (SCRIPT KILL ends it)",
    "MOVED": "it is a cluster, and another shard has our slot: give the address of that one",
    "MISCONF": "it cannot write to its disk",
    "NOPERM": "the user lacks a right: see docs/operating/redis.md",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write",
    "OOM": "its memory is full: raise maxmemory, or delete what is not ours",
    "READONLY": "it is a replica, and only a primary is written to",
}

_CODE = re.compile(rf"\b({'|'.join([*NOT_NOW, *ADVICE, OTHER])})\b")


class Script:
    """A script on a line; with `waits` its writes have to reach what the place asks for."""

    def __init__(self, line: Line, text: str, *, waits: bool = False) -> None:
        self._line = line
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._wait = _wait(line) if waits else ()

    async def run(self, key: str, arguments: Callable[[], Command], deadline: float) -> Any:
        """Run it with one key; `deadline` is a time of the event loop.

        `arguments` is asked for them whenever it is run, on a line that was greeted.

        Raises `Broken` if the server is not the one it was, and `Unavailable` with what is known
        when it refuses, or when the time is up.
        """
        loop = asyncio.get_running_loop()
        pause, again = PAUSE_SECONDS_MIN, False
        while True:
            why, done = await self._attempt(key, arguments, again)
            if why is None:
                return done
            again = True
            if loop.time() >= deadline:
                raise Unavailable(f"{self._line.place.shown}: {why}; what happened is unknown")
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _attempt(
        self, key: str, arguments: Callable[[], Command], again: bool
    ) -> tuple[str | None, Any]:
        """Return why it has to be tried again, or None and the answer."""
        try:
            await self._line.ready()
            command = ("EVALSHA", self._sha, 1, key, *arguments())
            answer, *reached = await self._line.ask(command, *self._wait)
            if isinstance(answer, ResponseError):
                return await self._refused(answer, again), None
        except Unavailable:
            raise
        except (Lost, StoreRefused) as error:
            return str(error), None
        except Exception as error:  # noqa: BLE001 - whoever waits must learn of it
            await self._line.hang_up()
            return repr(error), None
        return self._unmet(reached), answer

    async def _refused(self, error: ResponseError, again: bool) -> str:
        words = f"{error.status_code or ''} {error}".strip()
        found = _CODE.search(words)
        code = "" if found is None else found[1]
        shown = self._line.place.shown
        if code == OTHER:
            raise Broken(
                f"{shown} no longer holds what it held: it was emptied, or another took its place. "
                "Restore it, or begin anew with another prefix; this store answers no more"
            )
        if code == "NOSCRIPT":
            await self._line.ask(("SCRIPT", "LOAD", self._text))
        if code == "READONLY":
            await self._line.hang_up()
        advice = ADVICE.get(code, "")
        why = f"{words}{f' ({advice})' if advice else ''}"
        if code in NOT_NOW:
            return why
        # An earlier attempt, whose answer was lost, may have been executed.
        raise Unavailable(f"{shown} {'did nothing' if advice and not again else 'failed'}: {why}")

    def _unmet(self, reached: list[Any]) -> str | None:
        """Say what a write has not reached; None if it is where it has to be."""
        place = self._line.place
        if not reached:
            return None
        if isinstance(reached[0], ResponseError):
            return f"WAIT was refused: {reached[0]}"
        local, copies = reached[0] if place.wait_aof else (1, reached[0])
        if local < 1 or copies < place.replicas:
            synced = ", and its own disk has not" if local < 1 else ""
            return f"{copies} of {place.replicas} replicas have the write{synced}"
        return None


def _wait(line: Line) -> tuple[Command, ...]:
    place = line.place
    if place.wait_aof:
        return (("WAITAOF", 1, place.replicas, WAIT_MS_MAX),)
    return (("WAIT", place.replicas, WAIT_MS_MAX),) if place.replicas else ()
