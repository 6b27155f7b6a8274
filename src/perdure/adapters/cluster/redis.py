"""Nodes that know each other through a Redis: who is there in a hash, what they say by pub/sub.

A large message goes by way of a key that expires, because the server cuts off a subscriber who is
behind by more than some megabytes.
"""

from __future__ import annotations

import asyncio
import builtins
import secrets
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from perdure.adapters.redis.line import ANSWER_SECONDS_MAX, Command, Line, Lost
from perdure.adapters.redis.place import place_of
from perdure.adapters.redis.realm import Clock
from perdure.adapters.redis.script import Script
from perdure.core.errors import Unavailable
from perdure.ports.cluster import MESSAGE_BYTES_MAX, NodeCard, OnMessage

PATIENCE_SECONDS = 5.0
INLINE_BYTES_MAX = 64 * 1024
KEPT_MS = 60_000
"""How long a large message may be fetched."""
WAITING_BYTES_MAX = 4 * MESSAGE_BYTES_MAX
"""What is sent while so much waits already is lost."""
BATCH_BYTES_MAX = 1 << 20
SENT_SECONDS_MAX = 15.0
"""Enough for the largest message on a slow network."""
QUIET_SECONDS_MAX = 5.0
"""Whoever hears nothing for so long asks whether the line still stands."""
FAREWELL_SECONDS_MAX = 0.5
"""How long who leaves waits until everything is sent."""
PAUSE_SECONDS = 0.2
ID_BYTES = 8
INLINE, BY_KEY = b"i", b"k"

PRESENCE = """
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local cards, ends = KEYS[1], KEYS[1] .. ':ends'
if ARGV[1] == 'announce' then
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now)) do
    redis.call('HDEL', cards, gone)
    redis.call('ZREM', ends, gone)
  end
  redis.call('HSET', cards, ARGV[3], string.format('%.0f', now) .. ' ' .. ARGV[4])
  redis.call('ZADD', ends, now + ARGV[5], ARGV[3])
elseif ARGV[1] == 'leave' then
  redis.call('HDEL', cards, ARGV[3])
  redis.call('ZREM', ends, ARGV[3])
else
  local there = redis.call('ZRANGEBYSCORE', ends, '(' .. string.format('%.0f', now), '+inf')
  return there[1] and redis.call('HMGET', cards, unpack(there)) or {}
end
"""

_encode = msgspec.json.Encoder().encode
_card_decoder = msgspec.json.Decoder(NodeCard)


class RedisCluster:
    """A node's place among those that use the same Redis and prefix.

    Without a clock the server's time says who is there.
    """

    def __init__(self, url: str, clock: Clock = None) -> None:
        """Say where; `join` connects. Raises `InvalidInput` for a URL that cannot be."""
        self._place = place_of(url)
        self._now = clock if clock is None or callable(clock) else clock.now_ms
        self._me = secrets.token_bytes(ID_BYTES)
        self._asking = Line(self._place, _greet, ANSWER_SECONDS_MAX)
        self._sending = Line(self._place, _greet, SENT_SECONDS_MAX)
        self._hearing = Line(self._place, self._subscribe, ANSWER_SECONDS_MAX)
        self._presence = Script(self._asking, PRESENCE)
        self._turn = asyncio.Lock()
        self._card: NodeCard | None = None
        self._lifetime_ms = 0
        self._on_message: OnMessage = lambda message: None
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, card: NodeCard, lifetime_ms: int, on_message: OnMessage) -> None:
        """Become known, for `lifetime_ms` at a time, and hear what is sent to this node."""
        self._card, self._lifetime_ms, self._on_message = card, lifetime_ms, on_message
        try:
            await self._hearing.first()
            await self.announce(card)
        except BaseException:
            self._card = None
            await self._hang_up()
            raise
        self._start(self._hear())
        self._start(self._send())

    async def announce(self, card: NodeCard) -> None:
        """Say again that this node is there, and how it is."""
        if self._card is None:
            raise Unavailable("a node announces itself after it has joined")
        self._card = card
        await self._ask("announce", card.id, _encode(card), self._lifetime_ms)

    async def nodes(self) -> builtins.list[NodeCard]:
        """Return the nodes that announced themselves within their lifetime."""
        cards = []
        for stored in await self._ask("nodes"):
            seen_at, _, body = stored.partition(b" ")
            card = _card_decoder.decode(body)
            cards.append(msgspec.structs.replace(card, seen_at=int(seen_at)))
        return sorted(cards, key=lambda card: card.id)

    def send(self, node: str | None, message: bytes) -> None:
        """Have a message sent when the event loop comes to it."""
        size = len(message)
        if self._card is None or size > MESSAGE_BYTES_MAX:
            return
        if self._waiting_bytes + size <= WAITING_BYTES_MAX:
            self._waiting.append((self._channel(node), message))
            self._waiting_bytes += size
            self._all_sent.clear()
            self._news.set()

    async def leave(self) -> None:
        """Be known no more, and hear nothing more; what was sent before goes out first."""
        card, self._card = self._card, None
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS_MAX):
                await self._all_sent.wait()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if card is not None:
            # Who is not announced any more is gone when its lifetime is over anyway.
            with suppress(Unavailable):
                await self._ask("leave", card.id)
        await self._hang_up()

    async def _ask(self, *asked: Any) -> Any:
        word, *rest = asked
        now = "" if self._now is None else self._now()
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        async with self._turn:
            return await self._presence.run(
                f"{self._place.base}nodes", lambda: (word, now, *rest), deadline
            )

    async def _send(self) -> None:
        """Publish what waits, in batches; what cannot be published twice in a row is lost."""
        while True:
            if not self._waiting:
                self._all_sent.set()
                self._news.clear()
                await self._news.wait()
            commands: list[Command] = []
            size = 0
            while self._waiting and size < BATCH_BYTES_MAX:
                channel, message = self._waiting.popleft()
                size += len(message)
                commands += self._published(channel, message)
            for _ in range(2):
                try:
                    await self._sending.ask(*commands)
                    break
                except Lost:
                    await asyncio.sleep(PAUSE_SECONDS)
            self._waiting_bytes -= size

    def _published(self, channel: str, message: bytes) -> list[Command]:
        if len(message) <= INLINE_BYTES_MAX:
            return [("PUBLISH", channel, INLINE + self._me + message)]
        key = f"{self._place.base}message:{secrets.token_hex(ID_BYTES)}"
        said = BY_KEY + self._me + key.encode()
        return [("SET", key, message, "PX", KEPT_MS), ("PUBLISH", channel, said)]

    async def _hear(self) -> None:
        """Hear what is published, for ever."""
        asked = False
        while True:
            try:
                said = await self._hearing.next(QUIET_SECONDS_MAX)
                if said is None and asked:
                    await self._hearing.hang_up()
                elif said is None:
                    await self._hearing.say(("PING",))
                asked = said is None and not asked
                if said is not None and said[0] == b"message":
                    self._heard(*said[1:])
            except Lost:
                asked = False
                await asyncio.sleep(PAUSE_SECONDS)

    def _heard(self, channel: bytes, said: bytes) -> None:
        kind, sender = said[:1], said[1 : 1 + ID_BYTES]
        to_all = channel == self._channel(None).encode()
        if to_all and sender == self._me:
            return
        content = said[1 + ID_BYTES :]
        if kind == BY_KEY:
            self._start(self._fetch(content, to_all))
        else:
            self._deliver(content)

    async def _fetch(self, key: bytes, to_all: bool) -> None:
        """Get a large message; one that is for this node alone is needed by nobody else."""
        commands: list[Command] = [("GET", key), *([] if to_all else [("DEL", key)])]
        async with self._turn:
            try:
                found, *_ = await self._asking.ask(*commands)
            except Lost:
                return
        if isinstance(found, bytes):
            self._deliver(found)

    def _deliver(self, message: bytes) -> None:
        if self._card is not None:
            # What a callback raises is the event loop's to report, and ends nothing here.
            asyncio.get_running_loop().call_soon(self._on_message, message)

    def _channel(self, node: str | None) -> str:
        bus = f"{self._place.base}bus"
        return bus if node is None else f"{bus}:{node}"

    async def _subscribe(self, line: Line) -> None:
        assert self._card is not None, "who hears has a name"
        channels = (self._channel(None), self._channel(self._card.id))
        for answer in await line.exchange(*(("SUBSCRIBE", channel) for channel in channels)):
            if isinstance(answer, ResponseError):
                raise Lost(f"it does not let us subscribe: {answer}")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hang_up(self) -> None:
        for line in (self._asking, self._sending, self._hearing):
            await line.hang_up()


async def _greet(line: Line) -> None:
    """Nothing has to be known of a server on which nothing lasts."""
