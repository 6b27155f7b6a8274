"""The way out: requests to addresses that somebody else chose, and never to one of our own.

A URL from a user may name anything that this machine can reach: itself, its neighbours, the place
where a cloud hands out credentials. So a name is resolved once, every address it has must be a
public one, and the connection is made to an address that was checked, with the name as Host and in
TLS. A second look-up, which might give another answer, does not happen. Redirects are not followed:
whoever follows one asks `resolve` again with the new URL.

Which addresses are public is said by the tables here and not by `ipaddress.is_global`, whose answer
has changed between versions of Python. IPv6 is turned round: what is not in 2000::/3 is refused,
and with it mapped and compatible addresses, NAT64, and every local kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from perdure.core.errors import InvalidInput, PerdureError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

URL_CHARS_MAX: Final = 2_000
HEAD_BYTES_MAX: Final = 16 * 1024
"""How much of an answer is read: its status and headers. Its body is nobody's business."""
INTERIM_ANSWERS_MAX: Final = 4
PORT_MAX: Final = 65_535
PORTS_NAMED_MAX: Final = 10
LOOKUPS_MAX: Final = 100
"""So many names are looked up at a time, in threads that nothing else waits for."""

_DENIED_V4: Final = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers, and one cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # one cloud's own, in the middle of public space
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
_PUBLIC_V6: Final = IPv6Network("2000::/3")
_DENIED_V6: Final = [
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "3fff::/20",  # documentation
    )
]

_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class EgressDenied(PerdureError):
    """A URL that is not asked, for a reason that no retry changes."""


class EgressFailed(PerdureError):
    """There was no answer: no address, no connection, no HTTP, or not in time."""


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads: the addresses that were checked, and what is said to who listens there."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials are for: a redirect that changes it must not take them along."""
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """The host as an HTTP header says it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Answer(msgspec.Struct, frozen=True):
    """The head of an answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]


class Connect(msgspec.Struct, frozen=True):
    """One connection to make: to an address, with TLS for a name if it has one."""

    address: str
    port: int
    tls_name: str | None


_PORTS: Final = {"http": 80, "https": 443}


class Egress:
    """What may be asked, and how. Nothing in the environment (a proxy, say) changes it.

    `allowed` are networks that are asked although the tables deny them: an operator's own. `denied`
    are more that are not, and win over `allowed`. `connect` makes the connections.
    """

    def __init__(
        self,
        *,
        schemes: Collection[str] = ("https", "http"),
        ports: Collection[int] = (80, 443),
        allowed: Sequence[str] = (),
        denied: Sequence[str] = (),
        timeout_ms: int = 15_000,
        resolver: Resolver | None = None,
        connect: Callable[[Connect], Awaitable[Streams]] | None = None,
    ) -> None:
        self._schemes = schemes
        self._ports = ports
        self._allowed = [ip_network(network) for network in allowed]
        self._denied = [ip_network(network) for network in denied]
        self._timeout_ms = timeout_ms
        self._resolver = resolver or _resolve
        self._connect = connect or _connect

    def check(self, url: str) -> SplitResult:
        """Return the parts of a URL, if it is one that may be asked as far as it says itself.

        For the moment when somebody enters it. Raises `EgressDenied`, which says what is wrong.
        """
        if len(url) > URL_CHARS_MAX:
            raise EgressDenied(f"the URL is longer than {URL_CHARS_MAX} characters")
        # What programs disagree about (spaces, backslashes, user names, other scripts) is refused.
        if not all("!" <= char <= "~" and char not in '\\"<>^`{|}' for char in url):
            raise EgressDenied("the URL has a character that has to be written as %.. or xn--")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise EgressDenied(f"the URL cannot be read: {error}") from None
        if parts.scheme not in self._schemes:
            expected = " or ".join(self._schemes)
            raise EgressDenied(f"the URL has the scheme {parts.scheme!r}; expected {expected}")
        if "@" in parts.netloc:
            raise EgressDenied("the URL has a user name or password; leave it out")
        host = parts.hostname or ""
        if "[" in parts.netloc:
            if (address := _address(host)) is None or address.version != 6 or "%" in host:
                raise EgressDenied(f"the host [{host}] is no IPv6 address")
        elif not _NAME.fullmatch(host) or len(host) > 253:
            raise EgressDenied(f"the host {host!r} is no name and no address")
        elif _ENDS_IN_NUMBER.fullmatch(host) and _address(host) is None:
            raise EgressDenied(f"the host {host!r} is no address of the form 203.0.113.7")
        port = _PORTS[parts.scheme] if port is None else port
        if port not in self._ports:
            few = sorted(self._ports)[:PORTS_NAMED_MAX]
            expected = ", ".join(map(str, few))
            raise EgressDenied(f"the URL has the port {port}; expected one of {expected}")
        if (address := _address(host)) is not None:
            self._check_address(host, address)
        return parts

    async def resolve(self, url: str) -> Target:
        """Return where a URL leads, if every address that its name has may be asked.

        Raises `EgressDenied`, or `EgressFailed` for a name that has no address.
        """
        parts = self.check(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port or _PORTS[parts.scheme]
        found = [host] if _address(host) else await self._resolver(host, port)
        if not found:
            raise EgressFailed(f"the host {host!r} has no address")
        for text in found:
            # A resolver may add the zone of a link-local address, which is denied anyway.
            if (address := _address(text.partition("%")[0])) is None:
                raise EgressDenied(f"the host {host!r} has {text!r}, which is no address")
            self._check_address(host, address)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.scheme, host, port, path, tuple(dict.fromkeys(found)))

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post to a URL; return the head of the answer, whatever its status.

        Raises `EgressDenied` and `EgressFailed`. The time allowed is for everything together.
        """
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                target = await self.resolve(url)
                return await self._exchange(target, _request(target, headers, body))
        except TimeoutError:
            raise EgressFailed(f"no answer within {self._timeout_ms} ms") from None
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise EgressFailed(f"the connection failed: {error!r}") from None

    async def _exchange(self, target: Target, request: bytes) -> Answer:
        reader, writer = await self._open(target)
        try:
            writer.write(request)
            for _ in range(INTERIM_ANSWERS_MAX):
                with contextlib.suppress(ConnectionError):  # it may have answered all the same
                    await writer.drain()
                answer = _answer(await reader.readuntil(b"\r\n\r\n"))
                if answer.status >= 200:
                    return answer
            raise EgressFailed("the answer did not come to an end")
        finally:
            writer.transport.abort()  # the rest of the answer is not waited for

    async def _open(self, target: Target) -> Streams:
        """Connect to the first of the checked addresses that listens."""
        tls_name = target.host if target.scheme == "https" else None
        *others, last = target.addresses
        for address in others:
            with contextlib.suppress(OSError):
                return await self._connect(Connect(address, target.port, tls_name))
        return await self._connect(Connect(last, target.port, tls_name))

    def _check_address(self, host: str, address: Address) -> None:
        if any(address in network for network in self._denied) or not (
            _is_public(address) or any(address in network for network in self._allowed)
        ):
            # Not which one: who asks could read the names of a network from the inside.
            raise EgressDenied(f"the host {host!r} has an address that is not public")


def egress_for(environment: Mapping[str, str]) -> Egress:
    """Return the way out that an operator allows in the environment.

    `PERDURE_WEBHOOK_NETWORKS` are more networks than the public ones (`10.1.0.0/16,::1/128`),
    `PERDURE_WEBHOOK_PORTS` the ports, or `*` for any. Raises `InvalidInput`.
    """
    networks = _words(environment.get("PERDURE_WEBHOOK_NETWORKS", ""))
    ports = _words(environment.get("PERDURE_WEBHOOK_PORTS", "")) or ["80", "443"]
    try:
        every = range(1, PORT_MAX + 1)
        return Egress(allowed=networks, ports=every if ports == ["*"] else [*map(int, ports)])
    except ValueError as error:
        raise InvalidInput(
            f"PERDURE_WEBHOOK_NETWORKS or PERDURE_WEBHOOK_PORTS cannot be read: {error}; expected "
            "networks such as 10.1.0.0/16,::1/128 and ports such as 443,8443"
        ) from None


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _DENIED_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _DENIED_V6)


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


async def _resolve(host: str, port: int) -> list[str]:
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_lookups(), look_up)
    return [str(address[0]) for *_, address in found]


async def _connect(to: Connect) -> Streams:
    """Connect to an address; no name is looked up."""
    context = _tls() if to.tls_name is not None else None
    return await asyncio.open_connection(
        to.address, to.port, ssl=context, server_hostname=to.tls_name, limit=HEAD_BYTES_MAX
    )


@functools.cache
def _lookups() -> ThreadPoolExecutor:
    """Whose name servers do not answer holds up no other work: the loop's own threads are few."""
    return ThreadPoolExecutor(LOOKUPS_MAX, "perdure-lookup")


@functools.cache
def _tls() -> ssl.SSLContext:
    """Read the system's authorities once: it takes as long as ten connections."""
    return ssl.create_default_context()


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    head = {
        "host": target.host_header,
        "content-length": str(len(body)),
        "connection": "close",
        **{name.lower(): value for name, value in headers.items()},
    }
    for name, value in head.items():
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise EgressDenied(f"the header {name!r} has a name or value that HTTP cannot say")
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _answer(head: bytes) -> Answer:
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if (found := _STATUS_LINE.fullmatch(first)) is None:
        raise EgressFailed("what answered does not speak HTTP/1")
    fields = [line.decode("latin-1").partition(":") for line in lines]
    return Answer(
        int(found.group(1)), {name.strip().lower(): value.strip() for name, _, value in fields}
    )
