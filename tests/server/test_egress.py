"""The way out: what is denied, that nothing else is asked, and what comes of an answer."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from perdure.core.errors import InvalidInput
from perdure.server.egress import (
    Connect,
    Egress,
    EgressDenied,
    EgressFailed,
    Streams,
    egress_for,
)
from tests.server.listeners import listening, status

# Every way to say an address of ours that programs have fallen for. PORT is a canary's.
BYPASSES = [
    "http://127.0.0.1:PORT/",
    "http://127.0.0.2:PORT/",
    "http://127.255.255.254:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://0:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0.1.2.3:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7F.1:PORT/",
    "http://0x7f.0x0.0x0.0x1:PORT/",
    "http://017700000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0177.0.0.01:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.0.0.001:PORT/",
    "http://4294967297:PORT/",
    "http://127.0.0.1%00.example.com:PORT/",
    "http://127.0.0.1%2e:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST:PORT/",
    "http://localhost.:PORT/",
    "http://local%68ost:PORT/",
    "http://127。0。0。1:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/",
    "http://[::1]:PORT/",
    "http://[::]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[::ffff:0:127.0.0.1]:PORT/",
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[2001:0:7f00:1::]:PORT/",
    "http://[2001:2::1]:PORT/",
    "http://[2001:db8::1]:PORT/",
    "http://[3fff::1]:PORT/",
    "http://[5f00::1]:PORT/",
    "http://[100::1]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://[::1%25lo]:PORT/",
    "http://[fec0::1]:PORT/",
    "http://[fc00::1]:PORT/",
    "http://[fd00:ec2::254]:PORT/",
    "http://[ff02::1]:PORT/",
    "http://[127.0.0.1]:PORT/",
    "http://[v1.127.0.0.1]:PORT/",
    "http://[::1:PORT/",
    "http://::1:PORT/",
    "http://10.0.0.1:PORT/",
    "http://172.16.0.1:PORT/",
    "http://172.31.255.255:PORT/",
    "http://192.168.1.1:PORT/",
    "http://100.64.0.1:PORT/",
    "http://100.100.100.200:PORT/",
    "http://169.254.169.254:PORT/latest/meta-data/",
    "http://168.63.129.16:PORT/",
    "http://192.0.0.192:PORT/",
    "http://192.0.2.1:PORT/",
    "http://192.88.99.1:PORT/",
    "http://198.18.0.1:PORT/",
    "http://198.51.100.1:PORT/",
    "http://203.0.113.1:PORT/",
    "http://224.0.0.1:PORT/",
    "http://240.0.0.1:PORT/",
    "http://255.255.255.255:PORT/",
    "http://public.example@127.0.0.1:PORT/",
    "http://public.example:80@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT@public.example/",
    "http://127.0.0.1:PORT#@public.example/",
    "http://127.0.0.1:PORT\\@public.example/",
    "http://public.example\\@127.0.0.1:PORT/",
    "http://public.example#@127.0.0.1:PORT/\r\nHost: x",
    "http://127.0.0.1:PORT\t/",
    " http://127.0.0.1:PORT/",
    "http:\n//127.0.0.1:PORT/",
    "http:127.0.0.1:PORT/",
    "http:///127.0.0.1:PORT/",
    "http:/\\127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "127.0.0.1:PORT/",
    "HTTP://127.0.0.1:PORT/",
    "ftp://127.0.0.1:PORT/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:PORT/_x",
    "dict://127.0.0.1:PORT/",
    "javascript:alert(1)",
    "ftp://public.example:PORT/",
    "ws://public.example:PORT/",
    "://public.example:PORT/",
    "http://public.example:22/",
    "http://public.example:0/",
    "http://public.example:65536/",
    "http://public.example:-1/",
    "http://public.example:٨٠/",
    "http://-public.example:PORT/",
    "http://public..example:PORT/",
    "http://.public.example:PORT/",
    "http://" + "a" * 64 + ".example:PORT/",
    "http://" + "a." * 127 + "example:PORT/",
    "http://public.example:PORT/" + "a" * 2_000,
    "http://",
    "",
    # names that lead home
    "http://home.example:PORT/",
    "http://metadata.example:PORT/",
    "http://both.example:PORT/",
    "http://mapped.example:PORT/",
    "http://zoned.example:PORT/",
    "http://nonsense.example:PORT/",
]

PUBLIC = "93.184.216.34"
NAMES = {
    "public.example": [PUBLIC],
    "two.example": [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "home.example": ["127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "both.example": [PUBLIC, "127.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "zoned.example": ["fe80::1%lo"],
    "nonsense.example": ["localhost"],
}


class World:
    """A resolver as lenient as a C library, and connections that are counted before they are made.

    A connection to a public address leads to a listener of ours: the rest of the world is not
    asked by a test.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.resolved: list[str] = []
        self.connected: list[Connect] = []
        self.dead: set[str] = set()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Names from the table; anything that a C library takes for a number is one."""
        self.resolved.append(host)
        if (known := NAMES.get(host)) is not None:
            return known
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]

    async def connect(self, to: Connect) -> Streams:
        """Make the connection."""
        self.connected.append(to)
        if to.address in self.dead:
            raise ConnectionRefusedError(to.address)
        return await asyncio.open_connection("127.0.0.1", self.port, limit=16 * 1024)


def way_out(world: World, **options: Any) -> Egress:
    """An egress into that world."""
    ports = options.pop("ports", (80, 443, world.port))
    return Egress(resolver=world.resolve, connect=world.connect, ports=ports, **options)


@pytest.mark.parametrize("url", BYPASSES)
async def test_no_url_leads_home(url: str) -> None:
    """Denied before anything is connected; and what `check` lets pass, the addresses do not."""
    async with listening() as canary:
        world = World(canary.port)
        with pytest.raises(EgressDenied):
            await way_out(world).post(url.replace("PORT", str(canary.port)), {}, b"{}")
        assert (world.connected, canary.connections) == ([], 0)


def test_the_corpus_is_as_long_as_it_should_be() -> None:
    """And has no line twice."""
    assert len(set(BYPASSES)) == len(BYPASSES) >= 60


async def test_a_canary_sings() -> None:
    """The same URL, allowed by the operator, does connect: else the zeros above mean nothing."""
    async with listening() as canary:
        egress = Egress(ports=[canary.port], allowed=["127.0.0.0/8"])
        answer = await egress.post(f"http://localhost:{canary.port}/x?y=1#z", {"a": "b"}, b"{}")
        assert (answer.status, canary.connections) == (200, 1)
        assert canary.requests == [
            f"POST /x?y=1 HTTP/1.1\r\nhost: localhost:{canary.port}\r\ncontent-length: 2\r\n"
            "connection: close\r\na: b\r\n\r\n{}".encode()
        ]


async def test_what_is_denied_on_top_wins() -> None:
    """An operator's network inside of what the operator allows."""
    egress = Egress(allowed=["10.0.0.0/8"], denied=["10.0.0.0/24", "93.184.216.0/24"])
    assert (await egress.resolve("http://10.0.1.1/")).addresses == ("10.0.1.1",)
    for url in ("http://10.0.0.1/", f"http://{PUBLIC}/"):
        with pytest.raises(EgressDenied, match="an address that is not public"):
            await egress.resolve(url)


async def test_a_name_that_changes_its_mind_is_asked_once() -> None:
    """Rebinding: public when it is checked, loopback when it is used. The checked one is used."""
    answers = [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]]

    async def rebind(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with listening() as receiver:
        world = World(receiver.port)
        egress = Egress(resolver=rebind, connect=world.connect)
        await egress.post("http://rebind.example/", {}, b"")
        assert world.connected == [Connect(PUBLIC, 80, None)]
        with pytest.raises(EgressDenied):
            await egress.post("http://rebind.example/", {}, b"")
        assert (len(answers), len(world.connected)) == (1, 1)


async def test_an_operator_may_insist_on_tls() -> None:
    """Then http is a scheme like any other that is not asked."""
    async with listening() as receiver:
        egress = way_out(World(receiver.port), schemes=("https",))
        with pytest.raises(EgressDenied, match="has the scheme 'http'; expected https"):
            await egress.post("http://public.example/", {}, b"")
        assert (await egress.post("https://public.example/", {}, b"")).status == 200


async def test_a_redirect_is_an_answer_and_not_an_order() -> None:
    """It is not followed; and its target is denied to whoever asks about it."""
    async with listening() as canary:
        home = f"http://127.0.0.1:{canary.port}/"
        async with listening(lambda request: status(302, location=home)) as receiver:
            world = World(receiver.port)
            egress = way_out(world, ports=(80, canary.port))
            answer = await egress.post("http://public.example/", {}, b"")
            assert (answer.status, answer.headers["location"]) == (302, home)
            with pytest.raises(EgressDenied):
                await egress.resolve(answer.headers["location"])
            assert (canary.connections, receiver.connections) == (0, 1)


async def test_the_name_stays_the_name() -> None:
    """The address is connected to, the host is spoken to: in HTTP, and in TLS."""
    async with listening() as receiver:
        world = World(receiver.port)
        egress = way_out(world)
        await egress.post("https://public.example./", {}, b"")
        await egress.post(f"http://public.example:{receiver.port}", {}, b"")
        assert world.connected == [
            Connect(PUBLIC, 443, "public.example"),
            Connect(PUBLIC, receiver.port, None),
        ]
        hosts = [request.split(b"\r\n")[1] for request in receiver.requests]
        assert hosts == [b"host: public.example", b"host: public.example:%d" % receiver.port]
    target = await Egress(ports=[8443]).resolve("https://[2606:2800:21f:cb07::1]:8443/")
    assert target.host_header == "[2606:2800:21f:cb07::1]:8443"
    assert target.origin == ("https", "2606:2800:21f:cb07::1", 8443)


async def test_tls_asks_for_the_name() -> None:
    """A real handshake's first message, which says in clear whom it is for."""
    heard = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read(2_000))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        egress = Egress(ports=[port], allowed=["127.0.0.0/8"])
        with pytest.raises(EgressFailed, match="the connection failed"):
            await egress.post(f"https://localhost:{port}/", {}, b"")
        assert b"localhost" in await heard


async def test_the_next_address_is_tried() -> None:
    """All were checked before the first was tried."""
    async with listening() as receiver:
        world = World(receiver.port)
        world.dead = {PUBLIC}
        assert (await way_out(world).post("http://two.example/", {}, b"")).status == 200
        assert [to.address for to in world.connected] == NAMES["two.example"]
        world.dead = set(NAMES["two.example"])
        with pytest.raises(EgressFailed, match="the connection failed"):
            await way_out(world).post("http://two.example/", {}, b"")


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would do the resolving, and lead anywhere."""
    async with listening() as proxy, listening() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await way_out(World(receiver.port)).post("http://public.example/", {}, b"")
        assert (proxy.connections, receiver.connections) == (0, 1)


ANSWERS = [
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    (b"HTTP/1.0 500\r\nserver: x\r\n\r\nbody that is not read", 500),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 10, "did not come to an end"),
    (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not speak HTTP/1"),
    (b"HTTP/1.1 999 Odd\r\n\r\n", "does not speak HTTP/1"),
    (b"HTTP/1.1 200 OK\r\n", "the connection failed"),
    (b"", "the connection failed"),
    (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", "the connection failed"),
    (None, "no answer within 50 ms"),
]


@pytest.mark.parametrize("said, expected", ANSWERS)
async def test_what_comes_of_an_answer(said: bytes | None, expected: int | str) -> None:
    """Its head is read, up to a size and a time; the rest is nobody's business."""
    async with listening(lambda request: said) as receiver:
        egress = way_out(World(receiver.port), timeout_ms=50 if said is None else 5_000)
        if isinstance(expected, int):
            assert (await egress.post("http://public.example/", {}, b"{}")).status == expected
        else:
            with pytest.raises(EgressFailed, match=expected):
                await egress.post("http://public.example/", {}, b"{}")


async def test_names_that_nobody_answers_for_hold_up_nothing_else() -> None:
    """A look-up takes none of the loop's own few threads, and waits for none."""
    never = threading.Event()
    loop, few = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    loop.set_default_executor(few)
    try:
        busy = loop.run_in_executor(None, never.wait)
        async with asyncio.timeout(5):
            with pytest.raises(EgressDenied):
                await Egress().resolve("http://localhost/")
    finally:
        never.set()
    await busy


async def test_a_name_without_an_address_has_failed() -> None:
    """It may have one tomorrow."""

    async def nothing(host: str, port: int) -> Sequence[str]:
        return []

    async def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    for resolver, message in ((nothing, "has no address"), (unknown, "not known")):
        with pytest.raises(EgressFailed, match=message):
            await Egress(resolver=resolver).post("http://gone.example/", {}, b"")


@pytest.mark.parametrize(
    "name, value", [("a b", "c"), ("a", "b\r\nhost: c"), ("a:", "b"), ("a", ""), ("a", "ü")]
)
async def test_a_header_cannot_be_two(name: str, value: str) -> None:
    """What goes into the request's head is checked there."""
    async with listening() as receiver:
        with pytest.raises(EgressDenied, match="cannot say"):
            await way_out(World(receiver.port)).post("http://public.example/", {name: value}, b"")
        assert receiver.connections == 0


PUBLIC_URLS = [
    "http://public.example",
    "https://public.example/hook?token=a%20b",
    "https://xn--bcher-kva.example/",
    "https://under_score.example/",
    "https://1e100.example/",
    "http://8.8.8.8/",
    "http://172.32.0.1/",
    "http://100.128.0.1/",
    "http://168.63.129.17/",
    "http://223.255.255.255/",
    "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
    "https://[2001:4860:4860::8888]/",
]


@pytest.mark.parametrize("url", PUBLIC_URLS)
def test_what_is_public_passes(url: str) -> None:
    """The near misses: a guard that denies everybody is switched off before long."""
    assert Egress().check(url).scheme in url


@pytest.mark.parametrize("environment", [
    {"PERDURE_WEBHOOK_NETWORKS": "10.0.0.1/8"}, {"PERDURE_WEBHOOK_NETWORKS": "localhost"},
    {"PERDURE_WEBHOOK_PORTS": "https"},
])  # fmt: skip
def test_an_environment_that_cannot_be_read_is_named(environment: dict[str, str]) -> None:
    """At the start, with what was expected."""
    with pytest.raises(InvalidInput, match="expected networks such as"):
        egress_for(environment)
