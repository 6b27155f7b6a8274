"""RedisStore: one Redis server, any number of nodes, and every promise of the port."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from perdure.adapters.redis.names import escape
from perdure.adapters.redis.place import place_of
from perdure.adapters.redis.reader import Reader
from perdure.adapters.redis.realm import Clock, Realm
from perdure.adapters.redis.writer import Answer, Header, Request
from perdure.adapters.stores.redis import operations
from perdure.adapters.stores.redis.operations import Commit
from perdure.adapters.stores.redis.packing import (
    name,
    session_of,
    unpack,
    unpack_inbox,
    unpack_record,
)
from perdure.adapters.stores.redis.writer import StepWriter
from perdure.core.codec import Record, genesis
from perdure.core.durability import Durability
from perdure.core.errors import (
    Broken,
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
)
from perdure.core.ids import SessionId
from perdure.core.limits import INBOX_ENTRIES_MAX
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

PATIENCE_SECONDS = 5.0
LIST_PAGE = 200
CLAIMED_BYTES = 64 * 1024
"""What a session that is claimed may weigh, at a guess: a batch claims so many and no more."""
SCHEMA = 1
LANES = 2
"""While one batch is executed the next one is made, of other sessions."""

_row_decoder = msgspec.json.Decoder(RunRow)


class RedisStore:
    """A store in one Redis server, or in one slot of a cluster, that any number of nodes share.

    A lost connection is made anew, and what was under way on it is asked again, which executes it
    once. What a server does not answer within `patience_seconds` raises `Unavailable`. A server
    that was emptied, or replaced by another one, is `Broken`.
    """

    durability: Durability
    identity: str

    def __init__(self, realm: Realm) -> None:
        """Use `open` instead."""
        self.durability = realm.durability
        self.identity = realm.identity
        self._realm = realm
        self._closed = False
        self._accounted: dict[str, int] = {}
        self._reader = Reader(realm, realm.script(__package__, "common.lua", "read.lua"))
        self._lanes = [
            StepWriter(realm, realm.script(__package__, "common.lua", "write.lua", writes=True))
            for _ in range(LANES)
        ]

    @classmethod
    async def open(
        cls, url: str, clock: Clock = None, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> RedisStore:
        """Open the store at `url`, beginning it if there is none.

        Without a clock the server's time decides. Settings of the URL: `prefix`, with which all
        names begin; `replicas`, how many must have a write before it counts; `wait_aof=1`, to have
        each synced whatever the server's own settings. Raises `InvalidInput`, `Unavailable`, and
        `StoreRefused` for a server that cannot be trusted with facts.
        """
        realm = Realm(place_of(url), clock, "store", SCHEMA, patience_seconds)
        try:
            await realm.open()
            return cls(realm)
        except BaseException:
            await realm.hang_up()
            raise

    async def close(self) -> None:
        """Write what was submitted, and close the connections; safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.gather(*(lane.stop() for lane in self._lanes))
            await self._reader.stop()
            await self._realm.hang_up()

    async def accept(
        self, entry: InboxEntry, row: RunRow | None = None, generation: int = 0
    ) -> Receipt:
        """Put a command into a session's inbox, creating the session if it is new."""
        try:
            "".join((*entry.session, entry.id)).encode()
        except UnicodeEncodeError as error:
            why = f"{entry.id!r} or its session is not valid Unicode: {error}"
            raise InvalidInput(why) from None

        def read(answer: Answer, load: Any) -> bool:
            word = answer[0] if answer else b""
            if word == b"reused":
                raise KeyReused(f"{entry.session} knows {entry.id!r} with another command")
            if word == b"full":
                raise LimitExceeded(
                    f"{INBOX_ENTRIES_MAX} commands wait in the inbox of {entry.session} already"
                )
            return word == b"duplicate"

        header, payloads = operations.accepting(entry, row, generation, INBOX_ENTRIES_MAX)
        duplicate: bool = await self._ask(entry.session, header, payloads, read)
        return Receipt(entry.id, entry.session, self.durability, duplicate)

    async def claim(
        self,
        session: SessionId,
        owner: str,
        nonce: str,
        strikes_max: int | None = None,
        reads: int | None = None,
    ) -> Claimed | NotClaimed:
        """Take the right to write a session, then read it, in one transaction."""

        def read(answer: Answer, load: Any) -> Claimed | NotClaimed:
            word = answer[0].decode()
            if word == "claimed":
                return Claimed(Token(answer[1], nonce), _loaded(session, load))
            return NotClaimed(word, answer[1].decode() if len(answer) > 1 else None)

        header = operations.claiming(session, owner, nonce, strikes_max, reads)
        claimed: Claimed | NotClaimed = await self._ask(session, header, [], read, CLAIMED_BYTES)
        return claimed

    async def load(self, session: SessionId) -> Loaded | None:
        """Read a session without the right to write it; None if there is none."""
        found = await self._read("load", name(session))
        return None if found is None else _loaded(session, found)

    def commit(self, step: StepCommit, done: CommitDone) -> None:
        """Submit a step commit; `done` is called on the event loop once its fate is known."""
        loop = asyncio.get_running_loop()
        if self._closed:
            loop.call_soon(done, self._is_closed())
        else:
            self._lane(step.session).submit(Commit(step, done, loop.time()))

    async def renew(self, owner: str, lease_ms: int) -> bool:
        """Confirm the node's lease for all its sessions; False if it had run out meanwhile.

        It has run out, too, where the server was found to lack what this node was told: it may know
        the node as the owner of what that gave up long ago, or gave to another claim. What the
        server is set to is looked up besides.
        """
        self._realm.measure_again()
        if any(lane.losses for lane in self._lanes):
            # What one line noticed the others have to notice now, not in the midst of new claims.
            touched = (self._submit(lane, ("touch", 0), [], _word) for lane in self._lanes)
            await asyncio.gather(*touched)
        losses = sum(lane.losses for lane in self._lanes)
        void = int(losses > self._accounted.setdefault(owner, losses))
        while True:
            # Claims are voided some at a time, so that nobody has to wait for all of them.
            word: str = await self._ask(None, ("renew", 0, owner, lease_ms, void), [], _word)
            if word != "more":
                self._accounted[owner] = losses
                return not word

    async def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None = None,
        quarantine: str | None = None,
    ) -> None:
        """Give up a claim, or put a session in quarantine, or lift that."""

        def read(answer: Answer, load: Any) -> None:
            word = _word(answer, load)
            if word == "fenced" or (word and token is not None):
                assert token is not None
                raise operations.fenced(session, token)
            if word:
                raise NotFound(f"there is no session {session}")

        header, payloads = operations.releasing(session, token, snapshot, quarantine)
        await self._ask(session, header, payloads, read)

    async def due(
        self,
        now: int,
        limit: int,
        agents: Collection[str] | None = None,
        reads: int | None = None,
    ) -> tuple[builtins.list[SessionId], int | None]:
        """Return sessions nobody runs that are due at `now`, and the time of the next one after."""
        names = [escape(agent) for agent in agents or ()]
        reads = operations.NONE if reads is None else reads
        asked = ("due", now, max(0, limit), names, int(agents is None), reads)
        after, *found = await self._read(*asked)
        return [session_of(one) for one in found], None if after is None else int(after)

    async def unread(self, owner: str, limit: int) -> builtins.list[SessionId]:
        """Return sessions for which something was accepted that their owner may not know of."""
        return [session_of(one) for one in await self._read("unread", owner, max(0, limit))]

    async def distrust(self) -> None:
        """Make every session suspect."""
        await self._ask(None, ("distrust", 0), [], _word)

    async def settled(self, session: SessionId, id: str) -> Settled | None:
        """Say what became of an inbox entry; None while it waits, or if there is none."""
        refusal = await self._read("settled", name(session), id)
        return None if refusal is None else Settled(refusal)

    async def read(self, session: SessionId, after: int, limit: int) -> builtins.list[Record]:
        """Return up to `limit` records after position `after`, in order."""
        records: builtins.list[Record] = []
        version = after + 1
        while len(records) < limit and after + len(records) < version:
            start, wanted = after + len(records), limit - len(records)
            version, *found = await self._read("read", name(session), start, wanted)
            records += [unpack_record(seq, one) for seq, one in enumerate(found, start + 1)]
        return records

    async def list(self, query: RunQuery) -> builtins.list[RunRow]:
        """Return the rows of runs that match, newest first."""
        tenant = escape(query.tenant)
        if query.run is not None:
            found = await self._read("run", tenant, query.run)
            return [row for _, row in _rows(found) if _matches(query, row)][: max(0, query.limit)]
        rows: builtins.list[RunRow] = []
        last = None if query.before is None else (query.before[0], query.before[1].encode())
        since = "+inf" if query.before is None else str(query.before[0])
        index, offset = _index(query), 0
        while len(rows) < query.limit:
            found = await self._read("list", tenant, index, since, offset, LIST_PAGE)
            for place, row in _rows(found):
                # Whatever was added meanwhile has moved the pages.
                if last is None or place < last:
                    last = place
                    if _matches(query, row):
                        rows.append(row)
            if len(found) < LIST_PAGE:
                break
            offset += LIST_PAGE
        return rows[: max(0, query.limit)]

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        stored = await self._read("blob", address)
        return None if stored is None else unpack(stored)

    def facts(self) -> dict[str, str | int | None]:
        """Return what is worth knowing of this store: where and how it writes, and how much."""
        return {**self._realm.facts(), "batches": sum(lane.batches for lane in self._lanes)}

    def _lane(self, session: SessionId | None) -> StepWriter:
        """Return the writer of a session: one, so that its operations keep their order."""
        return self._lanes[hash(session) % LANES if session else 0]

    async def _ask(
        self,
        session: SessionId | None,
        header: Header,
        payloads: builtins.list[bytes],
        read: Callable[[Answer, Any], Any],
        load_bytes: int = 0,
    ) -> Any:
        return await self._submit(self._lane(session), header, payloads, read, load_bytes)

    async def _submit(
        self,
        lane: StepWriter,
        header: Header,
        payloads: builtins.list[bytes],
        read: Callable[[Answer, Any], Any],
        load_bytes: int = 0,
    ) -> Any:
        if self._closed:
            raise self._is_closed()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lane.submit(Request(header, payloads, read, future, load_bytes))
        return await future

    async def _read(self, *question: Any) -> Any:
        if self._closed:
            raise self._is_closed()
        return await self._reader.ask(*question)

    def _is_closed(self) -> Broken:
        return Broken(f"the store {self._realm.place.shown} is closed")


def _word(answer: Answer, load: Any) -> str:
    return answer[0].decode() if answer else ""


def _loaded(session: SessionId, found: Any) -> Loaded:
    version, strikes, quarantine, suspect, since, snapshot, last, tail, inbox = found
    since = int(since)
    return Loaded(
        session=session,
        version=version,
        head=unpack_record(version, last).hash if last is not None else genesis(session),
        snapshot=None if snapshot is None else unpack(snapshot),
        tail=tuple(unpack_record(seq, one) for seq, one in enumerate(tail, since + 1)),
        inbox=unpack_inbox(session, inbox),
        strikes=int(strikes),
        quarantine=None if quarantine is None else quarantine.decode(),
        suspect=None if suspect is None else int(suspect),
    )


def _rows(found: Any) -> list[tuple[tuple[int, bytes], RunRow]]:
    """Return rows with their places in the order; a row keeps the time of its first write."""
    rows = []
    for named, created, stored in found:
        row = _row_decoder.decode(stored.split(b"\n", 2)[2])
        created_at = int(float(created))
        if row.created_at != created_at:
            row = msgspec.structs.replace(row, created_at=created_at)
        rows.append(((created_at, named), row))
    return rows


def _index(query: RunQuery) -> str:
    """Return the name of the smallest index that has what is looked for."""
    if query.agent is not None and query.key is not None:
        return f"runs:{name(SessionId(query.tenant, query.agent, query.key))}"
    if query.key is not None:
        return f"keys:{escape(query.tenant)}/{escape(query.key)}"
    if query.status is not None:
        return f"status:{query.status}:{escape(query.tenant)}"
    if query.agent is not None:
        return f"runs:{escape(query.tenant)}/{escape(query.agent)}"
    return f"runs:{escape(query.tenant)}"


def _matches(query: RunQuery, row: RunRow) -> bool:
    return (
        (query.agent is None or row.session.agent == query.agent)
        and (query.key is None or row.session.key == query.key)
        and (query.status is None or row.status == query.status)
        and (query.before is None or (row.created_at, row.id) < query.before)
    )
