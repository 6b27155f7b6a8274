"""One connection to a NATS server, and to another one of its cluster when that is gone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.adapters.nats.place import Place
from perdure.core.errors import Broken, InvalidInput, Unavailable

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

CONNECT_SECONDS_MAX = 5.0
RECONNECT_SECONDS = 0.25
PING_SECONDS = 1
PINGS_LOST_MAX = 2
REQUEST_SECONDS = 2.0
RETRY_SECONDS = 0.1
UNDELIVERED_BYTES_MAX = 1 << 30
"""What a subscription holds back while its reader is busy; beyond that messages are dropped."""

NOT_FOUND, TEMPORARY = 404, 503


class Stored(NamedTuple):
    """A message as a stream has it."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes


class Refused(Exception):
    """JetStream refused a request; `code` is its status, `number` its error's."""

    def __init__(self, code: int, number: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.number = number


class Hearing:
    """What is heard on a subject, whichever client it comes through."""

    __slots__ = ("_on_end", "_on_message", "_subject", "_subscription", "client")

    def __init__(
        self,
        subject: str,
        on_message: Callable[[Msg], Awaitable[None]],
        on_end: Callable[[Hearing], None],
    ) -> None:
        self.client: Client | None = None
        self._subject = subject
        self._on_message = on_message
        self._on_end = on_end
        self._subscription: Subscription | None = None

    async def begin(self, client: Client) -> None:
        """Hear what comes through a client from now on."""
        self.client = client
        self._subscription = await client.subscribe(
            self._subject,
            cb=self._on_message,
            pending_msgs_limit=0,
            pending_bytes_limit=UNDELIVERED_BYTES_MAX,
        )

    async def caught_up(self) -> None:
        """Wait until all that has come is heard."""
        # Its client has no event for it.
        while self._subscription and self._subscription.pending_msgs:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Hear nothing more."""
        self._on_end(self)
        if self._subscription is not None:
            with suppress(_errors().Error, OSError):
                await self._subscription.unsubscribe()


class Connection:
    """A connection that comes back by itself, and what is asked over it.

    Its client comes back to a server that was lost, but gives up for good at almost every error
    that one tells: then there is another client. `on_return` are called whenever the connection has
    come back: what was sent meanwhile may be lost.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.on_return: list[Callable[[], None]] = []
        self._client: Client
        self._closed = True
        self._hearings: set[Hearing] = set()
        self._coming_back: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._answers = ""
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Callable[[Msg], None]] = {}

    @classmethod
    async def open(cls, place: Place) -> Connection:
        """Connect. Raises `Unavailable`, and `InvalidInput` without the extra."""
        self = cls(place)
        try:
            await self._connect()
        except ImportError:
            raise InvalidInput("nats:// needs an extra: pip install 'perdure[nats]'") from None
        except (OSError, TimeoutError, _errors().Error) as error:
            raise Unavailable(f"{place.shown} cannot be reached: {_said(error)}") from None
        self._closed = False
        self._answers = self._client.new_inbox()
        await self.subscribe(f"{self._answers}.*", self._answered)
        return self

    async def _connect(self) -> None:
        """Connect another client, and hear through it. Raises what it raises."""
        from nats.aio.client import Client

        client = Client()
        connecting = client.connect(
            servers=self.place.servers,
            name="perdure",
            connect_timeout=2,
            reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # it only sleeps
            max_reconnect_attempts=-1,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=PINGS_LOST_MAX,
            error_cb=_ignore,
            reconnected_cb=self._returned,
            closed_cb=self._ended,
        )
        try:
            await asyncio.wait_for(connecting, CONNECT_SECONDS_MAX)
            while deaf := next((one for one in self._hearings if one.client is not client), None):
                await deaf.begin(client)
        except BaseException:
            await client.close()
            raise
        self._client = client

    async def close(self) -> None:
        """Send what is to be sent, and hang up; safe twice."""
        if not self._closed:
            self._closed = True
            if self._coming_back is not None:
                self._coming_back.cancel()
                await asyncio.wait([self._coming_back])
            with suppress(_errors().Error, OSError, TimeoutError):
                if self._client.is_connected:
                    await self._client.flush(1)
            await self._client.close()

    @property
    def connected(self) -> bool:
        """Whether there is a server at the other end, as far as is known."""
        return self._client.is_connected

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The version of the server at the other end."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def message_bytes_max(self) -> int:
        """The largest message, headers included, that the server takes."""
        return self._client.max_payload

    def check_open(self) -> None:
        """Raise `Broken` after `close`."""
        if self._closed:
            raise Broken(f"the connection to {self.place.shown} was closed")

    async def publish(
        self, subject: str, body: bytes, headers: dict[str, str] | None = None, reply: str = ""
    ) -> bool:
        """Send a message; False if that was not possible. It may get lost all the same."""
        if not self._client.is_connected:
            return False
        try:
            await self._client.publish(subject, body, reply, headers)
        except (_errors().Error, OSError):
            return False
        return True

    async def subscribe(
        self, subject: str, on_message: Callable[[Msg], Awaitable[None]]
    ) -> Hearing:
        """Hear what is sent to a subject, in order; if there is no connection, once it is back."""
        hearing = Hearing(subject, on_message, self._hearings.discard)
        self._hearings.add(hearing)
        with suppress(_errors().Error, OSError):
            await hearing.begin(self._client)
        return hearing

    async def flush(self, seconds: float) -> None:
        """Wait until the server has taken all that was sent. Raises `Unavailable`."""
        self.check_open()
        try:
            if self._client.is_connected:
                # The client takes any number of seconds, and says that it takes whole ones.
                await self._client.flush(seconds)  # type: ignore[arg-type]
                return
        except (_errors().Error, OSError, TimeoutError):
            pass
        raise Unavailable(f"{self.place.shown} cannot be reached")

    def answer_to(self, told: Callable[[Msg], None]) -> str:
        """Return a subject that one answer may be sent to; `told` is called with each that is."""
        token = f"{next(self._numbers):x}"
        self._waiting[token] = told
        return f"{self._answers}.{token}"

    def forget(self, subject: str) -> None:
        """Wait for answers to that subject no more."""
        self._waiting.pop(subject.rpartition(".")[2], None)

    async def ask(
        self,
        subject: str,
        body: bytes = b"",
        seconds: float = REQUEST_SECONDS,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        """Send a request once, and return its answer. Raises `Unavailable`."""
        self.check_open()
        answer: asyncio.Future[Msg] = self._loop.create_future()

        def told(message: Msg) -> None:
            if not answer.done():
                answer.set_result(message)

        reply = self.answer_to(told)
        try:
            if not await self.publish(subject, body, headers, reply):
                raise Unavailable(f"{self.place.shown} cannot be reached")
            message = await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            raise Unavailable(f"{self.place.shown} did not answer in time") from None
        finally:
            self.forget(reply)
        if _status(message) == TEMPORARY:
            raise Unavailable(f"nobody at {self.place.shown} serves JetStream at the moment")
        return message

    async def api(self, subject: str, seconds: float = CONNECT_SECONDS_MAX, **fields: Any) -> Any:
        """Ask JetStream, again and again for some seconds. Raises `Refused`, `Unavailable`."""
        body = json.dumps(fields).encode() if fields else b""
        end = self._loop.time() + seconds
        while True:
            try:
                answer = json.loads((await self.ask(f"$JS.API.{subject}", body)).data)
            except Broken:
                raise
            except Unavailable:
                if self._loop.time() > end:
                    raise
            else:
                if "error" not in answer:
                    return answer
                error = refusal(answer["error"])
                if error.code != TEMPORARY:
                    raise error
                if self._loop.time() > end:
                    raise Unavailable(f"{self.place.shown}: {error}")
            await asyncio.sleep(RETRY_SECONDS)

    async def stored(
        self, stream: str, seq: int | None = None, last: str | None = None
    ) -> Stored | None:
        """Return a message by its number, or the last of a subject; None if there is none.

        Any server may have it; only the stream's leader knows that there is none.
        """
        wanted = {"seq": seq} if last is None else {"last_by_subj": last}
        body = json.dumps(wanted).encode()
        with suppress(Unavailable):
            found = await self.ask(f"$JS.API.DIRECT.GET.{stream}", body)
            self.check_open()
            if (headers := found.headers) and "Nats-Sequence" in headers:
                return Stored(
                    int(headers["Nats-Sequence"]), headers["Nats-Subject"], headers, found.data
                )
        return await self._stored_by_the_leader(stream, wanted)

    async def _stored_by_the_leader(self, stream: str, wanted: dict[str, Any]) -> Stored | None:
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", **wanted)
        except Refused as error:
            if error.code == NOT_FOUND:
                return None
            raise Unavailable(f"{self.place.shown}: {error}") from None
        message = answer["message"]
        lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")
        pairs = (line.partition(":") for line in lines if ":" in line)
        return Stored(
            message["seq"],
            message["subject"],
            {name.strip(): value.strip() for name, _, value in pairs},
            base64.b64decode(message.get("data", "")),
        )

    async def _answered(self, message: Msg) -> None:
        told = self._waiting.get(message.subject.rpartition(".")[2])
        if told is not None:
            told(message)

    async def _returned(self) -> None:
        for told in self.on_return:
            told()

    async def _ended(self) -> None:
        if not self._closed and self._coming_back is None:
            self._coming_back = self._loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        """Connect other clients until one stays."""
        while self._client.is_closed:
            await asyncio.sleep(RECONNECT_SECONDS)
            with suppress(_errors().Error, OSError, TimeoutError, EOFError, ValueError):
                await self._connect()
                await self._returned()
        self._coming_back = None


def subject_part(text: str) -> str:
    """Return a part of a subject that stands for any text: 128 bits of its SHA-256."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16]).decode()[:22]


def refusal(error: Mapping[str, Any]) -> Refused:
    """Return what JetStream said in the `error` of an answer."""
    return Refused(
        int(error.get("code", 500)),
        int(error.get("err_code", 0)),
        str(error.get("description", "refused")),
    )


def temporary(message: Msg) -> bool:
    """Say whether an answer is that nobody is there to answer."""
    return _status(message) == TEMPORARY


def _status(message: Msg) -> int:
    headers = message.headers
    return 0 if not headers or message.data else int(headers.get("Status", 0))


def _errors() -> Any:
    import nats.errors

    return nats.errors


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _ignore(error: Exception) -> None:
    """A lost connection is seen by what it leaves unanswered."""
