"""NatsStore: JetStream as the only thing that sessions need."""

from __future__ import annotations

import asyncio
import builtins
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple, Protocol

import msgspec

from perdure.adapters.nats.connection import Connection, Refused, subject_part
from perdure.adapters.nats.log import Overtaken
from perdure.adapters.nats.place import Place
from perdure.adapters.nats.streams import durability, ensure, look
from perdure.adapters.stores.nats.contents import Contents
from perdure.adapters.stores.nats.control import Alarm, Control
from perdure.adapters.stores.nats.lanes import Shard
from perdure.adapters.stores.nats.messages import (
    Arrival,
    Body,
    Claim,
    Release,
    place_of,
    where,
)
from perdure.adapters.stores.nats.projection import Projection, Session
from perdure.core.codec import Record
from perdure.core.durability import Durability
from perdure.core.errors import (
    Broken,
    Fenced,
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    StoreRefused,
    Unavailable,
)
from perdure.core.ids import SessionId
from perdure.core.limits import INBOX_ENTRIES_MAX, clip
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    CommitDone,
    InboxEntry,
    Loaded,
    NotClaimed,
    Receipt,
    RunQuery,
    Settled,
    StepCommit,
    Token,
)

SHARDS, SHARDS_MAX = 4, 256
REPLICAS_MAX = 5
PATIENCE_SECONDS = 10
BODIES_AT_ONCE_MAX = 64
MESSAGE_BYTES_MIN = 1024 * 1024

_encode_row = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(RunRow).decode


class _HasTime(Protocol):
    def now_ms(self) -> int: ...


class Layout(NamedTuple):
    """What the settings of a URL say."""

    name: str
    shards: int | None
    storage: str
    replicas: int
    patience: float

    @property
    def control(self) -> tuple[str, str]:
        """The control stream, and what its subjects begin with."""
        return f"{self.name}_control", f"{self.name}.control"

    @classmethod
    def of(cls, place: Place) -> Layout:
        """Read them. Raises `InvalidInput`."""
        return cls(
            place.name(),
            place.number("shards", SHARDS, 1, SHARDS_MAX) if "shards" in place.settings else None,
            place.choice("storage", "file", "memory"),
            place.number("replicas", 1, 1, REPLICAS_MAX),
            float(place.number("patience", PATIENCE_SECONDS, 1, 600)),
        )


class NatsStore:
    """Sessions in JetStream: each of its streams is one shard of them.

    A node folds all streams in memory (see `projection`) and asks before it answers whether there
    is anything that it has not folded. `durability` is what the streams are set to.
    """

    durability: Durability
    identity: str

    def __init__(
        self,
        connection: Connection,
        shards: list[Shard],
        control: Control,
        projection: Projection,
        contents: Contents,
        held: AsyncExitStack,
    ) -> None:
        self._connection = connection
        self._shards = shards
        self._control = control
        self._projection = projection
        self._contents = contents
        self._held = held
        self._arriving: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(BODIES_AT_ONCE_MAX)
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, url: str, clock: Callable[[], int] | _HasTime | None = None) -> NatsStore:
        """Open the store at `nats://host:port[,host]?name=&shards=&storage=&replicas=`.

        `name` keeps several stores apart. The others say how the streams are made when there are
        none: how many, in `file` or `memory`, and with how many copies. `patience` is for how many
        seconds something is tried before it is `Unavailable`. Without a clock the server's holds.
        Raises `Unavailable`, `InvalidInput`, and `StoreRefused` for streams that may forget.
        """
        now = clock if clock is None or callable(clock) else clock.now_ms
        place = Place.parse(url)
        layout = Layout.of(place)
        alarm = Alarm(lambda: _distrust(place, layout, now), layout.patience)
        async with AsyncExitStack() as held:
            held.push_async_callback(alarm.close)
            connection = await Connection.open(place)
            held.push_async_callback(connection.close)
            self = await cls._open(layout, connection, now, held, alarm.ring)
            self._held = held.pop_all()
        return self

    @classmethod
    async def _open(
        cls,
        layout: Layout,
        connection: Connection,
        now: Callable[[], int] | None,
        held: AsyncExitStack,
        on_loss: Callable[[], None],
    ) -> NatsStore:
        if connection.message_bytes_max < MESSAGE_BYTES_MIN:
            raise StoreRefused(
                f"{connection.place.shown} takes messages of {connection.message_bytes_max} bytes: "
                f"set max_payload to {MESSAGE_BYTES_MIN} or more"
            )
        name, patience, made = layout.name, layout.patience, (layout.storage, layout.replicas)
        stream, prefix = layout.control
        found = [await ensure(connection, stream, f"{prefix}.>", *made, last_per_subject=2)]
        projection = Projection()
        control = Control(
            connection, stream, prefix, now, patience, on_void=projection.void, on_loss=on_loss
        )
        held.push_async_callback(control.log.close)
        identity = await control.open(layout.shards or SHARDS)
        if layout.shards not in (None, identity.shards):
            raise InvalidInput(
                f"?shards={layout.shards}: the store {name} has {identity.shards}, and that never "
                "changes"
            )
        found.append(await ensure(connection, f"{name}_contents", f"{name}.contents.>", *made))
        contents = Contents(connection, f"{name}_contents", f"{name}.contents", patience)
        shards = [
            Shard(number, connection, name, projection, contents, patience, on_loss)
            for number in range(identity.shards)
        ]
        for shard in shards:
            found.append(await ensure(connection, shard.stream, f"{shard.prefix}.>", *made))
            held.push_async_callback(shard.log.close)
        await asyncio.gather(*(shard.log.open() for shard in shards))
        self = cls(connection, shards, control, projection, contents, held)
        self.durability = durability(found)
        self.identity = identity.id
        return self

    async def close(self) -> None:
        """Hang up; what is on its way is `Unavailable`. Safe to call twice."""
        if not self._closed:
            self._closed = True
            if self._looking is not None:
                self._looking.cancel()
            await self._held.aclose()

    def facts(self) -> dict[str, str | int | None]:
        """Return what is worth knowing of this store."""
        logs = [self._control.log, *(shard.log for shard in self._shards)]
        return {
            "servers": self._connection.place.shown,
            "connected": int(self._connection.connected),
            "shards": len(self._shards),
            "sessions": len(self._projection.sessions),
            "durability": self.durability,
            "failure": next((log.failure for log in logs if log.failure), None),
        }

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox, creating the session if it is new."""
        self._check_open()
        try:
            "".join((*entry.session, entry.id)).encode()
        except UnicodeEncodeError as error:
            why = f"{entry.id!r} or its session is not valid Unicode: {error}"
            raise InvalidInput(why) from None
        place, name = place_of(entry.session), subject_part(entry.id)
        shard = self._shard(place)
        if row is not None and self._is_full(place) and not await shard.entry(place, name):
            await shard.log.sync()
            if self._is_full(place):
                raise LimitExceeded(
                    f"{INBOX_ENTRIES_MAX} commands wait in the inbox of {entry.session} already"
                )
        change = Arrival(
            entry.session,
            entry.id,
            self._control.set_time(),
            self._control.distrusted_at,
            generation,
            None if row is None else (row.id, row.status, row.created_at),
        )
        rows = () if row is None else (_encode_row(row),)
        body = Body(rows, id=entry.id, command=entry.command, accepted_at=entry.accepted_at)
        self._arriving[place] += 1
        try:
            seq = await shard.arrive(place, name, change, body)
        except Overtaken:
            self._arrived(place)
            return await self._duplicate(shard, place, name, entry)
        except BaseException:
            self._arrived(place)
            raise
        shard.log.when(seq, lambda: self._arrived(place))
        return Receipt(entry.id, entry.session, self.durability)

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it."""
        self._check_open()
        place = place_of(session)
        shard = self._shard(place)

        async def work() -> Claimed | NotClaimed:
            while True:
                await self._sync(shard)
                found = self._projection.sessions.get(place)
                if found is None:
                    return NotClaimed("absent")
                token = Token(found.epoch + 1, nonce)
                refusal = await self._why_not(found, owner, strikes_max, reads)
                if refusal is not None:
                    return refusal
                term, trusts = self._control.term(owner), self._control.distrusted_at
                change = Claim(*token, owner, term, found.void, trusts)
                if not await shard.write(place, change, Body()):
                    continue
                if reads is not None and found.generation > reads:
                    # Something newer was accepted while the claim was on its way.
                    await shard.write(place, Release(*token, None, None), Body())
                    return NotClaimed("newer")
                return Claimed(token, await self._loaded(shard, found))

        return await shard.turn(place, work)

    async def _why_not(
        self, found: Session, owner: str, strikes_max: int | None, reads: int | None
    ) -> NotClaimed | None:
        if found.quarantine is not None:
            return NotClaimed("quarantined")
        holder = found.holder
        if holder is not None and holder != owner and await self._is_alive(holder):
            return NotClaimed("held", holder)
        if reads is not None and found.generation > reads:
            return NotClaimed("newer")
        claimed, strikes = found.counted
        strike = claimed and holder != owner
        if strikes_max is not None and strikes + strike > strikes_max:
            return NotClaimed("struck")
        return None

    async def _is_alive(self, owner: str) -> bool:
        """Say whether a lease goes on: if it does not seem to, every renewal is looked for."""
        if self._control.alive(owner, self._control.now_ms()):
            return True
        return self._control.alive(owner, await self._control.exact_now_ms())

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session without the right to write it; None if there is none."""
        self._check_open()
        place = place_of(session)
        shard = self._shard(place)
        await self._sync(shard)
        found = self._projection.sessions.get(place)
        return None if found is None else await self._loaded(shard, found)

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit a step commit; `done` is called on the event loop once its fate is known."""
        if self._closed:
            loop = asyncio.get_running_loop()
            loop.call_soon(done, Broken("the store was closed"))
        else:
            place = place_of(step.session)
            self._shard(place).submit(place, step, done)

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm the node's lease for all its sessions; False if it had run out meanwhile.

        What the streams are set to is looked up besides: it can be changed while nodes run.
        """
        self._check_open()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await self._control.renew(owner, lease_ms)

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim, or put a session in quarantine, or lift that."""
        self._check_open()
        place = place_of(session)
        shard = self._shard(place)

        async def work() -> None:
            while True:
                await shard.log.sync()
                found = self._projection.sessions.get(place)
                if token is not None and (found is None or found.token != token):
                    raise Fenced(f"the claim {token.epoch} of {session} is not the current one")
                if found is None:
                    raise NotFound(f"there is no session {session}")
                kept, body = None, Body()
                if snapshot is not None and found.snapshot < snapshot[0] <= found.version:
                    kept, body = snapshot[0], Body(snapshot=snapshot[1])
                why = None if quarantine is None else clip(quarantine)
                nonce = None if token is None else token.nonce
                if await shard.write(place, Release(found.epoch, nonce, why, kept), body):
                    return

        await shard.turn(place, work)

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return sessions nobody runs that are due at `now`, and the time of the next one after."""
        await self._sync(*self._shards)
        clock = self._control.now_ms()
        owners = self._projection.owners()
        dead = [owner for owner in owners if not self._control.alive(owner, clock)]
        return self._projection.due(dead, now, limit, agents, reads)

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return sessions for which something was accepted that their owner may not know of."""
        await self._sync(*self._shards)
        return self._projection.unread(owner, limit)

    async def distrust(self) -> None:
        """Make every session suspect."""
        self._check_open()
        await self._control.distrust()

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        self._check_open()
        place = place_of(session)
        shard = self._shard(place)
        await shard.log.sync()
        found = self._projection.sessions.get(place)
        return [] if found is None else await self._records(shard, found, after, limit)

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        await self._sync(*self._shards)
        wanted = [
            (self._shards[run.session.shard], run.at, run.index, run.created_at)
            for run in self._projection.runs(query)
        ]
        bodies = await self._bodies((shard, at) for shard, at, _, _ in wanted)
        rows = (
            (_decode_row(bodies[shard, at].rows[index]), created_at)
            for shard, at, index, created_at in wanted
        )
        return [msgspec.structs.replace(row, created_at=first) for row, first in rows]

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        self._check_open()
        return await self._contents.find(address)

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        self._check_open()
        place, name = place_of(session), subject_part(id)
        shard = self._shard(place)
        await shard.log.sync()
        found = self._projection.sessions.get(place)
        if found is None or name in found.waiting:
            return None
        if name in found.refused:
            body = await shard.body(found.refused[name])
            return Settled(dict(body.refusals)[name])
        return None if await shard.entry(place, name) is None else Settled()

    async def _look(self) -> None:
        logs = [self._control.log, *(shard.log for shard in self._shards)]
        streams = [self._contents.stream, *(log.stream for log in logs)]
        with suppress(Unavailable, Refused):
            found = await asyncio.gather(*(look(self._connection, one) for one in streams))
            self.durability = durability(found)

    def _check_open(self) -> None:
        if self._closed:
            raise Broken("the store was closed")

    def _shard(self, place: str) -> Shard:
        return self._shards[zlib.crc32(place.encode()) % len(self._shards)]

    async def _sync(self, *shards: Shard) -> None:
        """Have all folded that was written to some shards, and what concerns every session."""
        self._check_open()
        logs = (self._control.log, *(shard.log for shard in shards))
        await asyncio.gather(*(log.sync() for log in logs))

    def _is_full(self, place: str) -> bool:
        found = self._projection.sessions.get(place)
        waiting = 0 if found is None else len(found.waiting)
        return waiting + self._arriving[place] >= INBOX_ENTRIES_MAX

    def _arrived(self, place: str) -> None:
        self._arriving[place] -= 1
        if not self._arriving[place]:
            del self._arriving[place]

    async def _duplicate(self, shard: Shard, place: str, name: str, entry: InboxEntry) -> Receipt:
        known = await shard.entry(place, name)
        if known is None:
            raise Unavailable(f"{shard.stream} refuses {entry.id!r} and does not have it")
        if known.command != entry.command:
            raise KeyReused(f"{entry.session} knows {entry.id!r} with another command")
        return Receipt(entry.id, entry.session, self.durability, duplicate=True)

    async def _loaded(self, shard: Shard, found: Session) -> Loaded:
        """Return a session as it is folded now, and read what it does not have in memory."""
        version, head, snapshot_at = found.version, found.head, found.snapshot_at
        since, waiting = found.snapshot, [where(seq, 0) for seq in found.waiting.values()]
        _, strikes = found.counted
        quarantine, distrusted = found.quarantine, self._control.distrusted_at
        suspect = distrusted if found.trusted < distrusted else None
        tail = self._records(shard, found, since, version - since)
        wanted = [(shard, at) for at in [*waiting, *([snapshot_at] if snapshot_at else [])]]
        records, bodies = await asyncio.gather(tail, self._bodies(wanted))
        return Loaded(
            session=found.id,
            version=version,
            head=head,
            snapshot=bodies[shard, snapshot_at].snapshot if snapshot_at else None,
            tail=tuple(records),
            inbox=tuple(
                InboxEntry(body.id, found.id, body.command, body.accepted_at)
                for body in (bodies[shard, at] for at in waiting)
            ),
            strikes=strikes,
            quarantine=quarantine,
            suspect=suspect,
        )

    async def _records(
        self, shard: Shard, found: Session, after: int, limit: int
    ) -> builtins.list[Record]:
        places = found.messages(after, limit)
        bodies = await self._bodies((shard, at) for _, at in places)
        records = [
            Record(seq, *record)
            for first, at in places
            for seq, record in enumerate(bodies[shard, at].records, first)
        ]
        return [record for record in records if after < record.seq <= after + limit]

    async def _bodies(self, wanted: Iterable[tuple[Shard, int]]) -> dict[tuple[Shard, int], Body]:
        places = {*wanted}
        bodies = await asyncio.gather(*(self._body(*place) for place in places))
        return dict(zip(places, bodies, strict=True))

    async def _body(self, shard: Shard, at: int) -> Body:
        async with self._slots:
            return await shard.body(at)


async def _distrust(place: Place, layout: Layout, now: Callable[[], int] | None) -> None:
    """Make every session suspect, on nothing but what the control stream says now."""
    async with AsyncExitStack() as held:
        connection = await Connection.open(place)
        held.push_async_callback(connection.close)
        control = Control(connection, *layout.control, now, layout.patience)
        held.push_async_callback(control.log.close)
        await control.open(layout.shards or SHARDS)
        await control.distrust()
