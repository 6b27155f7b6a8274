"""Partitions by the kernel's packet filter, in a network namespace of their own.

Inside `private_network()` there is a loopback and nothing else. Each `Filtered` is one more address
of a server, 127.0.1.N, whose packets can be dropped either way: the peers' own TCP sends them again
until the filter lets them through, or gives up. It is a `Proxy` in all that troubles use.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from perdure.testing.servers import ServerMissing

INSIDE_VARIABLE = "_PERDURE_PRIVATE_NETWORK"
TABLE = "perdure"
RULES = f"""
table ip {TABLE} {{
  set requests {{ type ipv4_addr; }}
  set answers {{ type ipv4_addr; }}
  set refused {{ type ipv4_addr; }}
  chain where {{ type nat hook output priority -100; ip daddr 127.0.1.0/24 dnat to 127.0.0.1; }}
  chain out {{ type filter hook output priority 0;
    ct original ip daddr @refused ct direction original reject with tcp reset
    ct original ip daddr @requests ct direction original drop
    ct original ip daddr @answers ct direction reply drop
  }}
}}
"""
_numbers = itertools.count(1)


def is_private() -> bool:
    """Say whether this process has a network of its own."""
    return INSIDE_VARIABLE in os.environ


def run_in_private_network(module: str, arguments: Sequence[str]) -> int:
    """Run a module of ours with a network of its own; return its exit code.

    Raises `ServerMissing` where namespaces or the packet filter may not be used.
    """
    for program in ("unshare", "ip", "nft"):
        if shutil.which(program) is None:
            raise ServerMissing(f"no {program} on the path: install util-linux, iproute2, nftables")
    # Who is root already keeps the other users, whom PostgreSQL's server runs as.
    options = ["-n"] if os.geteuid() == 0 else ["-rn"]
    ready = 'ip link set lo up && printf %s "$RULES" | nft -f - && '
    environment = {**os.environ, INSIDE_VARIABLE: "1", "RULES": RULES}
    command = ["unshare", *options, "sh", "-c"]
    tried = subprocess.run(
        [*command, f"{ready} true"], capture_output=True, env=environment, check=False
    )
    if tried.returncode != 0:
        why = tried.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ServerMissing(f"no network namespace with a packet filter here: {' '.join(why)}")
    inside = [sys.executable, "-m", module, *arguments]
    script = f'{ready} exec "$@"'
    return subprocess.run(
        [*command, script, "sh", *inside], env=environment, check=False
    ).returncode


class Way:
    """The packets of one direction."""

    def __init__(self, kind: str, host: str) -> None:
        self._kind = kind
        self._host = host

    def hold(self) -> None:
        """Drop them."""
        _nft("add", self._kind, self._host)

    def heal(self) -> None:
        """Let them through."""
        # An element that is there is added without an error, and one must be there to be deleted.
        _nft("add", self._kind, self._host)
        _nft("delete", self._kind, self._host)


class Filtered:
    """An address of a server, for one node."""

    def __init__(self, host: str, port: int) -> None:
        self.host = f"127.0.1.{next(_numbers) % 254 + 1}"
        self.port = port
        self.requests = Way("requests", self.host)
        self.answers = Way("answers", self.host)
        self._refused = Way("refused", self.host)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()

    def hold(self) -> None:
        """Let nothing through either way."""
        self.requests.hold()
        self.answers.hold()

    def cut(self) -> None:
        """Reset every connection that is used, and every new one."""
        self._refused.hold()

    def heal(self) -> None:
        """Let everything through."""
        for way in (self.requests, self.answers, self._refused):
            way.heal()


def _nft(do: str, kind: str, host: str) -> None:
    subprocess.run(["nft", do, "element", "ip", TABLE, kind, f"{{ {host} }}"], check=True)
