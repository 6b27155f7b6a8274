"""Realm: all that is kept under one prefix, and what is known of the server that keeps it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Protocol

from perdure.adapters.redis.checks import Settings, measure
from perdure.adapters.redis.line import ANSWER_SECONDS_MAX, Command, Line
from perdure.adapters.redis.place import Place
from perdure.adapters.redis.script import Script
from perdure.core.durability import Durability, suffices
from perdure.core.errors import Broken, StoreRefused

IDENTITY_BYTES = 16

BEGIN = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'identity', ARGV[1], 'schema', ARGV[2], 'incarnation', 0, 'history',
    string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)'))
end
return redis.call('HMGET', KEYS[1], 'identity', 'schema')
"""


class HasTime(Protocol):
    """A clock."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        ...


Clock = Callable[[], int] | HasTime | None
"""Without one the server's own time decides."""


class Realm:
    """The keys of one `kind`, a store or a catalog, which a hash of that name describes.

    The hash has an identity, by which every script sees whether it is where it was. Once it was not
    found, `failure` says so, and nothing is asked any more. `patience_seconds` is how long who asks
    waits for a server that does not answer.
    """

    def __init__(
        self, place: Place, clock: Clock, kind: str, schema: int, patience_seconds: float
    ) -> None:
        self.place = place
        self.patience_seconds = patience_seconds
        self.identity = ""
        self.failure: Broken | None = None
        self._now = clock if clock is None or callable(clock) else clock.now_ms
        self._kind = kind
        self._schema = schema
        self._key = place.base + kind
        self._settings: Settings | None = None
        self._lines: list[Line] = []

    async def open(self) -> None:
        """Measure the server, and begin the realm if there is none.

        Raises `Unavailable`, and `StoreRefused` for what cannot be trusted or read.
        """
        line = self.line()
        await line.first()
        deadline = asyncio.get_running_loop().time() + self.patience_seconds
        proposed = secrets.token_hex(IDENTITY_BYTES)
        begin = Script(line, BEGIN, waits=True)
        identity, schema = await begin.run(self._key, lambda: (proposed, self._schema), deadline)
        if schema != b"%d" % self._schema:
            raise StoreRefused(
                f"{self.place.shown} holds a {self._kind} that another version of perdure wrote "
                f"under the prefix {self.place.prefix!r}: use that version, or another prefix"
            )
        self.identity = identity.decode()
        await line.hang_up()

    @property
    def durability(self) -> Durability:
        """What a write is worth, as it was measured last; never less than at the opening."""
        assert self._settings is not None, "the realm is not open"
        return self._settings.durability(self.place)

    @property
    def restarts_safely(self) -> bool:
        """Whether a server that was started again has all that it had answered."""
        return self.durability == "fsynced"

    def measure_again(self) -> None:
        """Have the server measured before anything else is asked: its settings can be changed."""
        for line in self._lines:
            line.greet_again()

    def line(self) -> Line:
        """Return one more line to the server."""
        line = Line(self.place, self._greet, min(ANSWER_SECONDS_MAX, self.patience_seconds))
        self._lines.append(line)
        return line

    def script(self, package: str, *names: str, writes: bool = False) -> Script:
        """Return the script that files of a package make, on a line of its own."""
        own = ("realm.lua", "once.lua") if writes else ("realm.lua",)
        parts = [files(__package__).joinpath(name) for name in own]
        parts += [files(package).joinpath(name) for name in names]
        text = "\n".join(part.read_text(encoding="utf-8") for part in parts)
        return Script(self.line(), text, waits=writes)

    async def run(self, script: Script, arguments: Callable[[], Command], since: float) -> Any:
        """Run a script; it is given the names' beginning, the identity and the time before all.

        It is given up when patience is at an end, counted from `since`, a time of the event loop.

        Raises `Unavailable`, and `Broken` from when on the realm is not there any more.
        """
        if self.failure is not None:
            raise self.failure

        def all_arguments() -> Command:
            now = "" if self._now is None else self._now()
            return (self.place.base, self.identity, now, *arguments())

        try:
            return await script.run(self._key, all_arguments, since + self.patience_seconds)
        except Broken as error:
            self.failure = error
            raise

    async def hang_up(self) -> None:
        """Close all lines."""
        for line in self._lines:
            await line.hang_up()

    def facts(self) -> dict[str, str | int | None]:
        """Return what is worth knowing of the server and the lines to it."""
        assert self._settings is not None, "the realm is not open"
        return {
            "place": self.place.shown,
            "prefix": self.place.prefix,
            "replicas": self.place.replicas,
            "redis_version": self._settings.version,
            **self._settings.settings,
            "durability": self.durability,
            "connections": sum(line.connections for line in self._lines),
            "failure": None if self.failure is None else str(self.failure),
        }

    async def _greet(self, line: Line) -> None:
        """Measure a server before it is asked anything. Raises `StoreRefused`."""
        found = await measure(line)
        given = found.durability(self.place)
        if self._settings is not None and not suffices(given, self.durability):
            raise StoreRefused(
                f"{self.place.shown} gives {given} now, and gave {self.durability} when it was "
                "opened: give it back its settings, or open it again"
            )
        self._settings = found
