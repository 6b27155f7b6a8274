"""Nodes that know each other through NATS: presence and a bus, without JetStream.

Whoever joins asks who is there; everybody answers with the cards of all that it knows, so that one
answer tells how many more to wait for. After that each node keeps what the others announce. Large
messages travel in parts.
"""

from __future__ import annotations

import asyncio
import builtins
import struct
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from perdure.adapters.nats.connection import Connection, Hearing, subject_part, temporary
from perdure.adapters.nats.place import Place
from perdure.core.errors import Unavailable
from perdure.ports.cluster import MESSAGE_BYTES_MAX, NodeCard, OnMessage

if TYPE_CHECKING:
    from nats.aio.msg import Msg

ANSWERS_SECONDS_MAX = 0.5
FLUSH_SECONDS_MAX = 2.0
FAREWELL_SECONDS_MAX = 0.5
"""How long who leaves waits until everything is sent."""
OUTBOX_BYTES_MAX = 4 * MESSAGE_BYTES_MAX
UNFINISHED_BYTES_MAX = 4 * MESSAGE_BYTES_MAX
OVERHEAD_BYTES = 1024
"""What subject and frame may add to a part, at most."""

FRAME = struct.Struct(">8sIHH")
"""In front of each part: the sender, which of its messages, which part of it, and of how many."""


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class Here(msgspec.Struct, array_like=True, frozen=True):
    """A node's card as it goes around: since when it is known, and for how long it holds."""

    card: NodeCard
    lifetime_ms: int
    age_ms: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Here]).decode


class NatsCluster:
    """A node's place in a cluster. The clock is this node's own: it says how old a card is."""

    def __init__(self, url: str, clock: Callable[[], int] | _HasTime) -> None:
        self._place = Place.parse(url)
        self._prefix = f"{self._place.name()}.cluster"
        self._now = clock if callable(clock) else clock.now_ms
        self._known: dict[str, Here] = {}
        self._me: Here | None = None
        self._self = uuid.uuid4().bytes[:8]
        self._connection: Connection | None = None
        self._on_message: OnMessage = lambda message: None
        self._presence: Hearing | None = None
        self._sent = 0
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_bytes = 0
        self._sending: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._parts: dict[tuple[bytes, int], dict[int, bytes]] = {}
        self._parts_bytes = 0

    async def join(self, card: NodeCard, lifetime_ms: int, on_message: OnMessage) -> None:
        """Become known, ask who is there, and hear what is sent to this node.

        Who joins listens, asks, and announces himself when he can be asked: of two that do so at
        the same time, at least one hears of the other, and then both do.
        """
        connection = self._connection = await Connection.open(self._place)
        self._on_message = on_message
        self._presence = await connection.subscribe(f"{self._prefix}.presence.*", self._notice)
        for subject in ("all", f"to.{subject_part(card.id)}"):
            await connection.subscribe(f"{self._prefix}.{subject}", self._hear)
        await self._ask_who_is_there()
        await connection.subscribe(f"{self._prefix}.who", self._answer)
        self._me = Here(card, lifetime_ms)
        await self.announce(card)
        connection.on_return.append(self._come_back)

    async def announce(self, card: NodeCard) -> None:
        """Say again that this node is there, and how it is."""
        if self._me is None:
            raise Unavailable("a node announces itself after it has joined")
        self._me = replace(self._me, card=replace(card, seen_at=self._now()))
        self._known[card.id] = self._me
        await self._say("here", [self._me])

    async def nodes(self) -> builtins.list[NodeCard]:
        """Return the nodes that announced themselves within their lifetime."""
        await self._catch_up()
        now = self._now()
        seen = (one for _, one in sorted(self._known.items()))
        return [one.card for one in seen if one.card.seen_at + one.lifetime_ms > now]

    def send(self, node: str | None, message: bytes) -> None:
        """Send a message to a node, or to all others, when the event loop comes to it."""
        if self._connection is None or len(message) > MESSAGE_BYTES_MAX:
            return
        if self._outbox_bytes + len(message) > OUTBOX_BYTES_MAX:
            return
        subject = (
            f"{self._prefix}.all" if node is None else f"{self._prefix}.to.{subject_part(node)}"
        )
        size = self._connection.message_bytes_max - OVERHEAD_BYTES
        count = max(1, -(-len(message) // size))
        self._sent = (self._sent + 1) & 0xFFFFFFFF
        for n in range(count):
            frame = FRAME.pack(self._self, self._sent, n, count)
            part = frame + message[n * size : (n + 1) * size]
            self._outbox.append((subject, part))
            self._outbox_bytes += len(part)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def leave(self) -> None:
        """Be known no more, and hear nothing more; what was sent before goes out first."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=FAREWELL_SECONDS_MAX)
        connection, self._connection = self._connection, None
        me, self._me = self._me, None
        if connection is None or me is None:
            return
        if self._sending is not None:
            await self._sending
        if self._returning is not None:
            await self._returning
        await connection.publish(f"{self._prefix}.presence.gone", _encode([me]))
        with suppress(Unavailable):
            await connection.flush(FLUSH_SECONDS_MAX)
        await connection.close()

    async def _send(self) -> None:
        while self._outbox:
            subject, body = self._outbox.popleft()
            if self._connection is not None:
                await self._connection.publish(subject, body)
            self._outbox_bytes -= len(body)

    async def _say(self, what: str, cards: builtins.list[Here]) -> None:
        connection = self._connection
        subject = f"{self._prefix}.presence.{what}"
        if connection is None or not await connection.publish(subject, _encode(cards)):
            raise Unavailable(f"{self._place.shown} cannot be reached")
        await connection.flush(FLUSH_SECONDS_MAX)

    async def _catch_up(self) -> None:
        """Take in all that the server had for us when this was called."""
        if self._connection is None or self._presence is None:
            raise Unavailable("a node sees others after it has joined")
        await self._connection.flush(FLUSH_SECONDS_MAX)
        await self._presence.caught_up()

    async def _ask_who_is_there(self) -> None:
        """Ask, and wait until everybody has answered whom anybody knows, or for a moment."""
        connection = self._connection
        assert connection is not None
        answered, enough = set[str](), asyncio.Event()

        def note(message: Msg) -> None:
            if not temporary(message):
                cards = self._learn(message.data)
                answered.update(card.card.id for card in cards[:1])
            others = {name for name, one in self._known.items() if one is not self._me}
            if others <= answered:
                enough.set()

        reply = connection.answer_to(note)
        await connection.publish(f"{self._prefix}.who", b"", reply=reply)
        with suppress(TimeoutError):
            await asyncio.wait_for(enough.wait(), ANSWERS_SECONDS_MAX)
        connection.forget(reply)

    async def _answer(self, message: Msg) -> None:
        """Tell who asks whom we know, ourselves first."""
        if self._connection is None or self._me is None or not message.reply:
            return
        now, me = self._now(), self._me
        others = [one for one in self._known.values() if one is not me]
        cards = [replace(one, age_ms=now - one.card.seen_at) for one in (me, *others)]
        await self._connection.publish(message.reply, _encode(cards))

    async def _notice(self, message: Msg) -> None:
        if not message.subject.endswith(".gone"):
            self._learn(message.data)
            return
        with suppress(msgspec.MsgspecError):
            for gone in _decode(message.data):
                self._known.pop(gone.card.id, None)

    def _learn(self, body: bytes) -> builtins.list[Here]:
        """Take in cards, unless later ones are known; what cannot be read is of another version."""
        try:
            cards = _decode(body)
        except msgspec.MsgspecError:
            return []
        now = self._now()
        for one in cards:
            seen_at, known = now - one.age_ms, self._known.get(one.card.id)
            if self._me is not None and one.card.id == self._me.card.id:
                continue
            if seen_at + one.lifetime_ms > now and (known is None or known.card.seen_at <= seen_at):
                card = replace(one.card, seen_at=seen_at)
                self._known[card.id] = replace(one, card=card, age_ms=0)
        return cards

    def _come_back(self) -> None:
        """Make good what was missed while there was no connection."""
        if self._returning is None or self._returning.done():
            self._returning = asyncio.get_running_loop().create_task(self._return())

    async def _return(self) -> None:
        with suppress(Unavailable):
            if self._me is not None:
                await self._say("here", [self._me])
                await self._ask_who_is_there()

    async def _hear(self, message: Msg) -> None:
        """Take in a part; a message is heard when all its parts are there."""
        frame, part = message.data[: FRAME.size], message.data[FRAME.size :]
        if len(frame) < FRAME.size or self._me is None:
            return
        sender, number, n, count = FRAME.unpack(frame)
        if sender == self._self and message.subject.endswith(".all"):
            return
        if count == 1:
            self._on_message(part)
            return
        parts = self._parts.setdefault((sender, number), {})
        if n not in parts:
            parts[n] = part
            self._parts_bytes += len(part)
        if len(parts) == count:
            del self._parts[sender, number]
            self._parts_bytes -= sum(map(len, parts.values()))
            self._on_message(b"".join(parts[n] for n in range(count)))
        while self._parts_bytes > UNFINISHED_BYTES_MAX:
            # What lost a part is never finished: the oldest makes room.
            lost = self._parts.pop(next(iter(self._parts)))
            self._parts_bytes -= sum(map(len, lost.values()))
