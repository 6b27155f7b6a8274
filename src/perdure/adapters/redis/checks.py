"""What is measured of a Redis before anything is entrusted to it, and again at each reconnect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from perdure.adapters.redis.line import Line
from perdure.adapters.redis.place import Place
from perdure.core.durability import Durability, replicated
from perdure.core.errors import StoreRefused

OLDEST = (6, 2)
OLDEST_WITH_WAITAOF = (7, 2)
ASKED = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy", "maxmemory")


class Settings(msgspec.Struct, frozen=True):
    """What durability rests on. `syncs` says whether a write is on the disk once it is answered."""

    version: str
    role: str
    settings: dict[str, str]

    @property
    def syncs(self) -> bool:
        """Whether every write is synced to disk before it is answered, whatever else goes on."""
        told = self.settings
        return (
            told["appendonly"] == "yes"
            and told["appendfsync"] == "always"
            and told["no-appendfsync-on-rewrite"] == "no"
        )

    def durability(self, place: Place) -> Durability:
        """Return what a write to this place is worth."""
        if place.replicas:
            return replicated(1 + place.replicas)
        if self.syncs or place.wait_aof:
            return "fsynced"
        return "os" if self.settings["appendonly"] == "yes" else "memory"


async def measure(line: Line) -> Settings:
    """Ask a server for its settings; for those who greet. Raises `StoreRefused`."""
    answers = await line.exchange(
        ("INFO", "server"), ("INFO", "replication"), *(("CONFIG", "GET", name) for name in ASKED)
    )
    refused = next((one for one in answers if isinstance(one, ResponseError)), None)
    if refused is not None:
        raise StoreRefused(
            f"{line.place.shown} does not say how it is set up ({refused}): the user needs INFO "
            "and CONFIG GET (ACL SETUSER ... +info +config|get)"
        )
    server, replication = (_fields(answer) for answer in answers[:2])
    told = dict(_pair(name, answer) for name, answer in zip(ASKED, answers[2:], strict=True))
    found = Settings(server.get("redis_version", "0"), replication.get("role", ""), told)
    check(line.place, found)
    return found


def check(place: Place, found: Settings) -> None:
    """Raise `StoreRefused` if a server cannot be trusted with facts."""
    version = tuple(int(part) for part in found.version.split(".")[:2] if part.isdigit())
    if version < OLDEST:
        raise StoreRefused(
            f"{place.shown} is Redis {found.version}: at least {_dotted(OLDEST)} is needed"
        )
    policy = found.settings["maxmemory-policy"]
    if policy != "noeviction":
        raise StoreRefused(
            f"{place.shown} throws keys away when its memory is full (maxmemory-policy is "
            f"{policy}): set it to noeviction, in its configuration file too"
        )
    if place.wait_aof and version < OLDEST_WITH_WAITAOF:
        raise StoreRefused(
            f"{place.shown} is Redis {found.version}, and wait_aof needs WAITAOF, which came with "
            f"{_dotted(OLDEST_WITH_WAITAOF)}: set appendfsync to always instead"
        )
    if place.wait_aof and found.settings["appendonly"] != "yes":
        raise StoreRefused(f"{place.shown} has no AOF to wait for: set appendonly to yes")


def _fields(answer: bytes) -> dict[str, str]:
    lines = answer.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _pair(name: str, answer: Sequence[Any]) -> tuple[str, str]:
    return name, answer[1].decode(errors="replace") if answer else ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
