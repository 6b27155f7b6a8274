"""Where the servers are: `nats://user:password@host:4222,other:4222?name=value`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from perdure.core.errors import InvalidInput

SCHEMES = ("nats", "tls")
PORT = 4222
SETTINGS = ("name", "shards", "storage", "replicas", "patience")
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Place:
    """The servers of a URL, and the settings after its `?`.

    `shown` is the URL without user, password and settings: the only form that is ever printed.
    """

    __slots__ = ("servers", "settings", "shown")

    def __init__(self, servers: list[str], shown: str, settings: Mapping[str, str]) -> None:
        self.servers = servers
        self.shown = shown
        self.settings = settings

    @classmethod
    def parse(cls, url: str) -> Place:
        """Read a URL. Raises `InvalidInput`.

        One URL may be that of a store, a catalog and a cluster: each takes what concerns it.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise InvalidInput("the URL of a NATS server begins with nats:// or tls://")
        places, _, query = rest.partition("?")
        login, at, hosts = places.rstrip("/").rpartition("@")
        names = [_with_port(host) for host in hosts.split(",")]
        settings = dict(parse_qsl(query, keep_blank_values=True))
        for name in settings.keys() - set(SETTINGS):
            raise InvalidInput(
                f"{name!r} is no setting of a NATS URL: expected {', '.join(SETTINGS)}"
            )
        shown = f"{scheme}://{','.join(names)}"
        return cls([f"{scheme}://{login}{at}{name}" for name in names], shown, settings)

    def number(self, setting: str, default: int, least: int, most: int) -> int:
        """Return a setting that is a number. Raises `InvalidInput`."""
        text = self.settings.get(setting, str(default))
        if not text.isdecimal() or not least <= int(text) <= most:
            raise InvalidInput(f"?{setting}={text}: expected a number from {least} to {most}")
        return int(text)

    def choice(self, setting: str, *choices: str) -> str:
        """Return a setting that is one of a few words, the first if it is not there."""
        text = self.settings.get(setting, choices[0])
        if text not in choices:
            raise InvalidInput(f"?{setting}={text}: expected {' or '.join(choices)}")
        return text

    def name(self) -> str:
        """Return the name that keeps several installations apart. Raises `InvalidInput`."""
        name = self.settings.get("name", "perdure")
        if not NAME.fullmatch(name):
            raise InvalidInput(f"?name={name}: expected up to 64 letters, digits, - or _")
        return name


def _with_port(host: str) -> str:
    bare, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        bare, port = host, str(PORT)
    if not bare or not port.isdecimal():
        raise InvalidInput("the URL of a NATS server names hosts: nats://host:4222,other:4222")
    return f"{bare}:{port}"
