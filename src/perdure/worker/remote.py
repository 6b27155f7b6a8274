"""`RemoteWorker`: executes the calls of agents for a server, over a socket that it opens itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket as system
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from perdure.client import ApiError, AsyncClient, Unreachable
from perdure.core.errors import InvalidInput, WorkerRefused
from perdure.ports.clock import Clock, Timer
from perdure.ports.credentials import CredentialProvider
from perdure.wire.frames import FRAME_BYTES_MAX
from perdure.wire.registration import FEATURES, Registration
from perdure.worker.agent import Agent
from perdure.worker.holding import Holding
from perdure.worker.link import Link
from perdure.worker.local import LocalWorker, Resolve
from perdure.worker.offers import agent_body, agent_offers, tool_offers
from perdure.worker.redaction import remember

WORKER_KEY_PREFIX = "nrnw_"
DELAY_MS_MIN = 200
DELAY_MS_MAX = 15_000
CLOSE_MS = 5_000
OPEN_SECONDS_MAX = 10
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FATAL = {401: "unauthorized", 403: "forbidden"}
_log = logging.getLogger("perdure.worker")
_socket_log = logging.getLogger("perdure.worker.socket")


class RemoteWorker:
    """A worker process of a server at `url`, which `key` lets in.

    It takes `concurrency_max` calls at once and frames of at most `frame_bytes_max` bytes. With
    `gard` it serves that gard alone, which it claims with `claim_token`; `ports` are the URLs that
    ports of the gard are to be reached at, by their numbers. `worker_id` stays the same
    as long as the process lives unless it is given. With `register` false it defines no agents: its
    key may not (that of a worker never may), or they are there. `threads_max` is how many sync
    functions run at once.

    While the server is away, calls go on, and their results are kept and sent once it is back. On
    SIGTERM or SIGINT it takes nothing new, finishes what it has within `shutdown_timeout_s`, and
    leaves; a second signal ends it at once, and the server hands on what it had.
    """

    def __init__(
        self,
        url: str,
        key: str,
        resolve: Resolve,
        clock: Clock,
        *,
        worker_id: str | None = None,
        concurrency_max: int = 100,
        threads_max: int = 32,
        capabilities: Sequence[str] = ("llm", "tools"),
        gard: str | None = None,
        claim_token: str | None = None,
        ports: Mapping[int, str] | None = None,
        register: bool | None = None,
        shutdown_timeout_s: float = 30.0,
        credential_providers: Mapping[str, CredentialProvider] | None = None,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        unacknowledged_max: int = 10_000,
        unacknowledged_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        self.url = url
        self.worker_id = worker_id or f"{system.gethostname()}-{os.getpid()}"
        key = key.strip()
        self._key = key
        for secret in (key, urlsplit(url).password, claim_token):
            remember(secret or "")
        self._credential_providers = credential_providers
        self._socket_url = _socket_url(url, key)
        self._resolve = resolve
        self._clock = clock
        self._concurrency_max = concurrency_max
        self._threads_max = threads_max
        self._capabilities = tuple(capabilities)
        self._gard = gard
        self._claim_token = claim_token
        self._ports = _checked_ports(ports or {}, gard)
        self._register = not key.startswith(WORKER_KEY_PREFIX) if register is None else register
        self._shutdown_timeout_ms = round(shutdown_timeout_s * 1000)
        self._frame_bytes_max = frame_bytes_max
        self._unacknowledged_max = unacknowledged_max
        self._unacknowledged_bytes_max = unacknowledged_bytes_max
        self._link: Link | None = None
        self._holding: Holding | None = None
        self._serving: asyncio.Task[None] | None = None
        self._timers: list[Timer] = []
        self._woken: asyncio.Future[None] | None = None
        self._failures = 0
        self._stopping = self._given_up = False

    async def run(self, agents: Iterable[Agent], *, signals: bool = True) -> None:
        """Define the agents on the server and execute their calls, until `stop` or a signal.

        Without `signals` the process's handlers are left alone. Raises `WorkerRefused` when the
        server will not have this worker, `InvalidInput` for agents that cannot be served together.
        """
        served = tuple(agents)
        local = LocalWorker(
            served,
            self._resolve,
            self._clock,
            threads_max=self._threads_max,
            name=self.worker_id,
            credential_providers=self._credential_providers,
        )
        self._stopping = self._given_up = False
        self._holding = Holding(
            local,
            self._wake,
            self._clock,
            concurrency_max=self._concurrency_max,
            unacknowledged_max=self._unacknowledged_max,
            unacknowledged_bytes_max=self._unacknowledged_bytes_max,
        )
        self._serving = asyncio.ensure_future(self._serve(served, self._holding))
        try:
            with self._signals() if signals else contextlib.nullcontext():
                await asyncio.wait([self._serving])
            if not self._serving.cancelled():
                self._serving.result()
        finally:
            self._serving.cancel()
            await asyncio.wait([self._serving])
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()
            await local.close()
            unsent = self._holding.unacknowledged() + self._holding.running
            if unsent:
                _log.warning("%d calls were left to other workers", unsent)

    def stop(self) -> None:
        """Take nothing new, finish what is under way, and end; a second time: end at once."""
        if self._serving is None or self._holding is None:
            return
        if self._stopping:
            self._give_up()
            return
        self._stopping = self._holding.draining = True
        self._timers.append(self._clock.call_later(self._shutdown_timeout_ms, self._give_up))
        if self._link is not None:
            self._link.drain()
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    # ---------------------------------------------------------------------------------- serving

    async def _serve(self, agents: tuple[Agent, ...], holding: Holding) -> None:
        specs = [agent.spec for agent in agents]
        registration = Registration(
            worker_id=self.worker_id,
            tools=tool_offers(specs),
            capabilities=self._capabilities,
            features=FEATURES,
            agents=agent_offers(specs),
            gard=self._gard,
            claim_token=self._claim_token,
            frame_bytes_max=self._frame_bytes_max,
            concurrency=self._concurrency_max,
        )
        if self._register:
            await self._define(agents)
        while not self._is_done(holding):
            socket = await self._connected()
            if socket is not None:
                await self._talk(socket, registration, holding)
            if not self._is_done(holding):
                await self._pause()

    def _is_done(self, holding: Holding) -> bool:
        return self._stopping and (self._given_up or holding.is_empty())

    async def _define(self, agents: tuple[Agent, ...]) -> None:
        """Define the agents on the server, however long it takes to answer."""
        async with AsyncClient(self.url, self._key, retries=0) as client:
            for agent in agents:
                while not self._stopping:
                    try:
                        await client.define_agent(agent_body(agent.spec))
                        break
                    except Unreachable as error:
                        _log.warning("%s", error)
                    except ApiError as error:
                        if error.status < 500 and error.status not in (408, 429):
                            raise _refusal(agent, error) from None
                        _log.warning("agent %s is not defined yet: %s", agent.name, error)
                    await self._pause()

    async def _connected(self) -> ClientConnection | None:
        """Return an open socket, or None if the server cannot be reached now."""
        try:
            return await connect(
                self._socket_url,
                logger=_socket_log,
                compression=None,
                max_size=self._frame_bytes_max,
                open_timeout=OPEN_SECONDS_MAX,
                close_timeout=CLOSE_MS / 1000,
            )
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status in _FATAL:
                raise WorkerRefused(
                    f"the server at {self.url} refused the worker's key ({status}): expected one "
                    "that is valid and has the scope worker or admin",
                    _FATAL[status],
                ) from None
            _log.warning("the server at %s answered %d", self.url, status)
        except (OSError, TimeoutError, WebSocketException) as error:
            _log.warning("the server at %s cannot be reached: %s", self.url, error)
        return None

    async def _talk(
        self, socket: ClientConnection, registration: Registration, holding: Holding
    ) -> None:
        link = self._link = Link(socket, registration, holding, self._clock, self._ports)
        try:
            await link.talk()
        finally:
            self._link = None
            holding.disconnected()
            if socket.close_code is None:
                await socket.close()
        # A server that lets a worker in and drops it at once is not one to come back to at once.
        now_ms = self._clock.monotonic_ms()
        if link.joined_ms is not None and now_ms - link.joined_ms >= DELAY_MS_MAX:
            self._failures = 0

    async def _pause(self) -> None:
        """Wait before the next attempt: longer each time, and never all workers together."""
        longest = min(DELAY_MS_MAX, DELAY_MS_MIN * 2 ** min(self._failures, 16))
        self._failures += 1
        woken = self._woken = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(
            round(longest * (0.5 + self._clock.chance() / 2)),
            lambda: None if woken.done() else woken.set_result(None),
        )
        try:
            await woken
        finally:
            timer.cancel()
            self._woken = None

    def _wake(self) -> None:
        if self._link is not None:
            self._link.wake()

    def _give_up(self) -> None:
        """Leave now; a server that does not even let us leave is not waited for."""
        self._given_up = True
        if self._link is None:
            self._end()
            return
        self._link.leave()
        self._timers.append(self._clock.call_later(CLOSE_MS, self._end))

    def _end(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on a signal, where signals can be had: in the main thread, and not on Windows."""
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                with contextlib.suppress(NotImplementedError):
                    loop.add_signal_handler(number, self.stop)
                    handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


def _checked_ports(ports: Mapping[int, str], gard: str | None) -> dict[int, str]:
    for port, url in ports.items():
        if not 0 < port < 65536 or urlsplit(url).scheme not in ("http", "https", "tcp"):
            raise InvalidInput(
                f"ports has {port}: {url!r}; expected a number from 1 to 65535 and a URL that "
                "begins with http://, https:// or tcp://"
            )
    if ports and gard is None:
        raise InvalidInput("ports are those of a gard, and this worker has none: give `gard` too")
    return dict(ports)


def _socket_url(url: str, key: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise InvalidInput(
            f"the server's URL is {url!r}; expected http://HOST:PORT or https://HOST"
        )
    path = parts.path.rstrip("/") + "/worker/websocket"
    query = f"token={quote(key, safe='')}&vsn=2.0.0"
    return urlunsplit((scheme, parts.netloc, path, query, ""))


def _refusal(agent: Agent, error: ApiError) -> WorkerRefused:
    hint = ""
    if error.status == 403:
        hint = "; a key that may not define agents needs a worker with register=False"
    return WorkerRefused(
        f"the server refused the definition of agent {agent.name!r}: {error}{hint}",
        _FATAL.get(error.status, str(error.status)),
    )
