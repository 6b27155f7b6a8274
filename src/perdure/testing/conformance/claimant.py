"""A node as the store's tests play it: it claims a session and writes it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from perdure.core.codec import Record, link
from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import (
    Claimed,
    InboxEntry,
    RunQuery,
    SessionStore,
    StepCommit,
    Token,
)

SESSION = SessionId("tenant", "agent", "key")
LEASE_MS = 1_000
FAR = 1 << 50
"""Milliseconds after which everything that has a wake-up time is due."""


class Claimant:
    """A session as its owner sees it, ahead of what is durable."""

    def __init__(self, claimed: Claimed) -> None:
        self.session = claimed.loaded.session
        self.token: Token = claimed.token
        self.loaded = claimed.loaded
        self.version = claimed.loaded.version
        self.head = claimed.loaded.head

    def step(self, *bodies: bytes, **fields: Any) -> StepCommit:
        """Return the next step commit with these events, and count on it from now on."""
        records = []
        for seq, body in enumerate(bodies, self.version + 1):
            self.head = link(self.head, body)
            records.append(Record(seq, body, self.head))
        expected, self.version = self.version, self.version + len(bodies)
        return StepCommit(
            session=self.session,
            token=self.token,
            expected=expected,
            records=tuple(records),
            **fields,
        )


def entry(name: str, command: bytes = b"{}", session: SessionId = SESSION) -> InboxEntry:
    """Return an inbox entry."""
    return InboxEntry(name, session, command, 1)


def run_row(name: str, session: SessionId = SESSION) -> RunRow:
    """Return the row of a run that waits for its turn."""
    return RunRow(id=name, session=session, status="queued", created_at=1)


async def claim(
    store: SessionStore, session: SessionId = SESSION, owner: str = "node", nonce: str = "n"
) -> Claimant:
    """Claim a session that can be claimed."""
    claimed = await store.claim(session, owner, nonce)
    assert isinstance(claimed, Claimed), claimed
    return Claimant(claimed)


async def created(
    store: SessionStore, session: SessionId = SESSION, owner: str = "node", nonce: str = "n"
) -> Claimant:
    """Make a session with nothing in its inbox, owned by a node with a lease."""
    await store.accept(entry("first", session=session))
    await store.renew(owner, LEASE_MS)
    claimant = await claim(store, session, owner, nonce)
    assert await submit(store, claimant.step(consumed=("first",))) == [None]
    return claimant


async def submit(store: SessionStore, *steps: StepCommit) -> list[StoreError | None]:
    """Submit steps in one go and return what became of each."""
    loop = asyncio.get_running_loop()
    told: list[asyncio.Future[StoreError | None]] = []
    for step in steps:
        future: asyncio.Future[StoreError | None] = loop.create_future()
        store.commit(step, future.set_result)
        assert not future.done(), "done was called before commit returned"
        told.append(future)
    return await asyncio.gather(*told)


async def outcomes(store: SessionStore, *steps: StepCommit) -> list[str]:
    """Submit steps in one go and return the names of their errors, or `written`."""
    return [
        "written" if error is None else type(error).__name__
        for error in await submit(store, *steps)
    ]


async def dump(
    store: SessionStore, *sessions: SessionId, tenants: tuple[str, ...] = ("tenant",)
) -> dict[str, Any]:
    """Return everything that the port shows of these sessions and tenants."""
    loaded = [await store.load(session) for session in sessions]
    return {
        "sessions": [None if one is None else msgspec.structs.asdict(one) for one in loaded],
        "logs": [await store.read(session, 0, 10_000) for session in sessions],
        "runs": [await store.list(RunQuery(tenant=tenant, limit=10_000)) for tenant in tenants],
        "due": await store.due(FAR, 10_000),
    }
