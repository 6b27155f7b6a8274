"""Claim, then load: how a session becomes an actor, or why it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from perdure.core.agent import Definition
from perdure.core.codec import GENERATION, Record, decode_event, genesis, verify_chain
from perdure.core.commands import InboxCommand, ResendModelCall, decode_command
from perdure.core.errors import BrokenChain, StoreError
from perdure.core.evolve import evolve
from perdure.core.history import History
from perdure.core.ids import SessionId
from perdure.core.state import EMPTY, State, decode_snapshot
from perdure.ports import faults
from perdure.ports.clock import Clock
from perdure.ports.session_store import Claimed, Loaded, NotClaimed, SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.runtime.actor import Actor
from perdure.runtime.agents import Agents
from perdure.runtime.probation import LAST_STRIKES, Probation
from perdure.runtime.unlike import Unlike

_LEFT = NotClaimed("held")
"""Said of a session that is left to others: it is as if one of them held it."""


class Found(NamedTuple):
    """A session that was claimed and read, its inbox, and since when it is suspect.

    After the inbox come the calls of models that may have been asked by whoever ran it before.
    """

    actor: Actor
    inbox: list[InboxCommand | ResendModelCall]
    suspect: int | None


class Loader:
    """Turns sessions into actors; sets aside those that cannot be read or that kill their host."""

    def __init__(
        self,
        store: SessionStore,
        agents: Agents,
        clock: Clock,
        telemetry: Telemetry,
        owner: str,
        read_batch_records: int,
        on_set_aside: Callable[[SessionId, str], None],
        probation: Probation,
        strikes_max: int,
    ) -> None:
        self._strikes_max = strikes_max
        self._store = store
        self._agents = agents
        self._clock = clock
        self._telemetry = telemetry
        self._owner = owner
        self._read_batch_records = read_batch_records
        self._on_set_aside = on_set_aside
        self._probation = probation
        self.unlike = Unlike(clock, telemetry)

    async def load(self, session: SessionId) -> Found | NotClaimed | None:
        """Claim and read a session; else say why not, or None if it is not ours to run.

        A session of an agent that is not registered here is left alone, and for a while one whose
        open calls need tools that only another node may have. A session whose log cannot be folded,
        or that was being run when its host died too often, is put in quarantine.
        """
        agent = self._agents.of(session.tenant, session.agent)
        if agent is None:
            return None
        if self.unlike.is_left(session):
            return _LEFT
        claimed = await self._claim(session, self._strikes_max - LAST_STRIKES)
        if isinstance(claimed, NotClaimed):
            if claimed.why == "struck":
                return await self._load_on_probation(session, agent)
            if claimed.why == "quarantined":
                loaded = await self._store.load(session)
                self._on_set_aside(session, (loaded and loaded.quarantine) or "no reason is kept")
            return claimed
        return await self._read(session, agent, claimed)

    async def _load_on_probation(
        self, session: SessionId, agent: Definition
    ) -> Found | NotClaimed | None:
        """Claim a session that may be what killed its host, if no other such one is run."""
        if not self._probation.enter(session):
            return None
        found: Found | NotClaimed | None = None
        try:
            claimed = await self._claim(session, None)
            if isinstance(claimed, Claimed):
                found = await self._read(session, agent, claimed)
        finally:
            if not isinstance(found, Found):
                self._probation.leave(session)
        return found

    async def _claim(self, session: SessionId, strikes_max: int | None) -> Claimed | NotClaimed:
        nonce = self._clock.fresh_id()
        return await self._store.claim(session, self._owner, nonce, strikes_max, GENERATION)

    async def _read(
        self, session: SessionId, agent: Definition, claimed: Claimed
    ) -> Found | NotClaimed | None:
        faults.reach("claim.after")
        loaded = claimed.loaded
        self._telemetry.emit(
            "session.claimed",
            session=str(session),
            epoch=claimed.token.epoch,
            version=loaded.version,
            strikes=loaded.strikes,
        )
        if loaded.strikes >= self._strikes_max:
            why = f"its host died {loaded.strikes} times in a row while running it"
            await self.set_aside(session, claimed, why)
            return None
        try:
            state, snapshot_version, history = await self._fold(loaded)
            inbox = [decode_command(entry.command, entry.accepted_at) for entry in loaded.inbox]
            resent = [ResendModelCall(call=call) for call in _reserved(state)]
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  one session's trouble stays its own
            await self.set_aside(session, claimed, str(error) or repr(error))
            return None
        lacks = self.unlike.lacks(session, state, agent)
        if lacks:
            await self._store.release(session, claimed.token)
            self.unlike.leave(session, lacks)
            return _LEFT
        actor = Actor(session, agent, claimed.token, state, loaded.head, snapshot_version)
        actor.history = history
        return Found(actor, [*inbox, *resent], loaded.suspect)

    async def set_aside(self, session: SessionId, claimed: Claimed, reason: str) -> None:
        """Put a session in quarantine: nobody claims it until it is released by hand."""
        self._telemetry.emit("session.quarantined", session=str(session), reason=reason)
        await self._store.release(session, claimed.token, quarantine=reason)
        self._on_set_aside(session, reason)

    async def _fold(self, loaded: Loaded) -> tuple[State, int, History | None]:
        """Return the state, the version of its snapshot, and the history after the snapshot.

        There is none when the snapshot cannot serve: the whole log may be long, and who needs its
        history reads the part that is needed.
        """
        state = decode_snapshot(loaded.snapshot) if loaded.snapshot is not None else EMPTY
        records, history = loaded.tail, None
        if state is None:
            state, records = EMPTY, await self._whole_log(loaded.session)
        else:
            history = History(state.version + 1)
        snapshot_version = state.version
        check_tail(loaded.session, state.version, records, loaded.head)
        for record in records:
            event = decode_event(record.body)
            state = evolve(state, event)
            if history is not None:
                history.fold(record.seq, event)
        if state.version != loaded.version:
            raise BrokenChain(
                state.version + 1,
                f"the log ends at {state.version}, the session is at {loaded.version}",
            )
        return state, snapshot_version, history

    async def _whole_log(self, session: SessionId) -> tuple[Record, ...]:
        records: list[Record] = []
        while True:
            after = records[-1].seq if records else 0
            page = await self._store.read(session, after, self._read_batch_records)
            if not page:
                return tuple(records)
            records.extend(page)


def _reserved(state: State) -> tuple[str, ...]:
    """Return the open calls for which something is reserved."""
    purse = None if state.run is None else state.run.purse
    return () if purse is None else tuple(purse.reserved)


def check_tail(session: SessionId, version: int, records: tuple[Record, ...], head: bytes) -> None:
    """Check that `records` follow `version`, are chained, and end in `head`.

    Raises `BrokenChain`. The link before the first record is known only at the start of a log.
    """
    if not records:
        return
    if version == 0:
        end = verify_chain(genesis(session), 0, records)
    else:
        if records[0].seq != version + 1:
            raise BrokenChain(version + 1, f"event {version + 1} is missing")
        end = verify_chain(records[0].hash, records[0].seq, records[1:])
    if end != head:
        raise BrokenChain(records[-1].seq, "the log does not end in the session's last hash")
