"""What one tenant may ask of a node: to take messages, answers and verdicts, and to be read from.

A tenancy is bound to its tenant: no method takes a tenant's name, so that nothing of another one
can be asked for. What belongs to somebody else reads as missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from perdure.api.cost import Prices
from perdure.core import commands as c
from perdure.core.budget import Budget, check_amount, check_budget
from perdure.core.codec import GENERATION, Record
from perdure.core.errors import (
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Refused,
)
from perdure.core.events import Mode
from perdure.core.ids import SessionId, digest
from perdure.core.limits import (
    ARGUMENT_BYTES_MAX,
    FORK_BYTES_MAX,
    JSON_DEPTH_MAX,
    MESSAGE_BYTES_MAX,
    too_deep,
)
from perdure.core.messages import AssistantMessage, Message, UserMessage
from perdure.core.runs import RowStatus, RunRow, queued_row
from perdure.core.session import Refusal
from perdure.ports import faults
from perdure.ports.clock import Clock
from perdure.ports.session_store import InboxEntry, Receipt, RunQuery, SessionStore
from perdure.runtime.agents import Agents
from perdure.runtime.followers import Followers, OnCommit, OnNews, quarantined
from perdure.runtime.forking import history_after
from perdure.runtime.handles import RecordedEvent, Run, answer_in, recorded
from perdure.runtime.host import Host
from perdure.runtime.settings import NodeSettings
from perdure.runtime.templates import named_last

KEY_CHARS_MAX = 512
ROWS_MAX = 100


class Tenancy:
    """The operations of one tenant on a node."""

    def __init__(
        self,
        tenant: str,
        store: SessionStore,
        agents: Agents,
        host: Host,
        followers: Followers,
        clock: Clock,
        settings: NodeSettings,
        check: Callable[[], None],
    ) -> None:
        self.tenant = tenant
        self.check = check
        """Raises what made the node give up, if something did."""
        self._store = store
        self._agents = agents
        self._host = host
        self._followers = followers
        self._clock = clock
        self._settings = settings

    @property
    def prices(self) -> Prices:
        """What models cost on this node."""
        return self._settings.prices

    async def send(
        self,
        agent: str,
        content: Any,
        *,
        session: str | None = None,
        mode: Mode = "queue",
        idempotency_key: str | None = None,
        sender: str | None = None,
        meta: dict[str, Any] | None = None,
        run_id: str | None = None,
        context: Sequence[UserMessage | AssistantMessage] = (),
        budget: Budget | None = None,
    ) -> Run:
        """Accept a message; when this returns, it is as durable as the store can make it.

        Without `session` the message gets a session of its own. The model is shown `context` right
        before it: messages that were said elsewhere, none of them with tool calls. The same
        `idempotency_key` gives the same run. `run_id` is for who has to know that before: a fresh
        one, or what `keyed` returns. The run may spend its `budget`, and no more than that of the
        agent. Raises `NotFound` for an unknown agent, `LimitExceeded` for a
        message that is too large or an inbox that is full, `KeyReused` for a key that came with
        another message.
        """
        self._check_agent(agent)
        if mode not in ("queue", "steer", "interrupt"):
            raise InvalidInput(f"mode {mode!r} is none of queue, steer, interrupt")
        if budget is not None:
            self._check_budget(agent, budget, mode)
        run_id = self._new_id(agent, session, idempotency_key, run_id)
        key = run_id if session is None else session
        _check_key(key)
        command = c.SendMessage(
            id=run_id,
            content=content,
            mode=mode,
            sender=sender,
            meta=meta,
            inherited=_groups(context),
            budget=budget,
        )
        return await self._start_keyed(SessionId(self.tenant, agent, key), command)

    def keyed(self, agent: str, session: str | None, idempotency_key: str) -> str:
        """Return the id of the run that a message with this key has, accepted or not."""
        scope = "\x1f".join((self._store.identity, agent, session or "", idempotency_key))
        return digest(scope.encode(errors="surrogatepass"))

    async def retry(self, run_id: str, *, as_run: str | None = None) -> Run:
        """Go on with a failed or cancelled run where it stopped, as a new run of its session.

        What it had completed is in the history and is not done again. `as_run` is the new run's id,
        a fresh one, for who has to know it before.
        """
        row = await self.row(run_id)
        if row.status not in ("failed", "cancelled"):
            raise Refused(
                f"run {run_id} is {row.status}: only a failed or cancelled run can be retried",
                row.status,
            )
        if row.started_seq is None:
            raise Refused(f"run {run_id} was cancelled before it began: send its message again", "")
        again = c.SendMessage(id=as_run or self._clock.fresh_id(), retry_of=run_id)
        return await self._start(row.session, again)

    async def fork(
        self,
        run_id: str,
        step: int,
        message: Any = None,
        *,
        agent: str | None = None,
        idempotency_key: str | None = None,
        meta: dict[str, Any] | None = None,
        new_id: str | None = None,
    ) -> Run:
        """Go on from a run's history after `step`, in a session of its own, as a new run.

        Step 0 is what the run's first model call was shown. What the run did is in the history,
        and is not done again; the run stays as it is. `message` comes after the history; without
        one the model goes on from where it stands. `agent` goes on with it, that of the run if
        none is named. `idempotency_key` and `new_id` (the new run's) are as in `send`. Raises
        `NotFound`, `InvalidInput` for a step that the run has not come to, `Refused` for a run that
        is in progress or has not begun, `LimitExceeded` for a message or history that is too large.
        """
        row = await self.row(run_id)
        agent = agent if agent is not None else row.session.agent
        self._check_agent(agent)
        new_id = self._new_id(agent, None, idempotency_key, new_id)
        if (size := len(_encode(message))) > MESSAGE_BYTES_MAX:
            raise _too_large("message", size, "MESSAGE_BYTES_MAX", MESSAGE_BYTES_MAX)
        origin, groups = await history_after(
            self._store, row, step, self._settings.read_batch_records
        )
        command = c.SendMessage(
            id=new_id, content=message, meta=meta, inherited=groups, fork_of=origin
        )
        return await self._start_keyed(SessionId(self.tenant, agent, new_id), command)

    async def cancel(self, run_id: str, reason: str = "cancelled on request") -> None:
        """End a run. Raises `Refused` when it has ended already."""
        row = await self.row(run_id)
        fresh = self._clock.fresh_id()
        await self._ask(row.session, c.CancelRun(id=fresh, run=run_id, reason=reason))

    async def reply(
        self, run_id: str, content: Any, *, call: str | None = None, by: str | None = None
    ) -> None:
        """Answer the oldest open question of a run, or that of `call`.

        Raises `Refused` when there is none.
        """
        row = await self.row(run_id)
        fresh = self._clock.fresh_id()
        answer = c.AnswerQuestion(id=fresh, run=run_id, content=content, call=call, by=by)
        await self._ask(row.session, answer)

    async def resolve(
        self,
        run_id: str,
        call: str,
        resolution: Literal["happened", "did_not_happen", "tell_model"],
        *,
        attempt: int | None = None,
        content: Any = None,
        by: str = "person",
    ) -> None:
        """Say what became of a call whose outcome is unknown. Raises `Refused` if it is known.

        `attempt` is the one that was looked into, as `row.waiting_for` named it: of a later one the
        verdict says nothing, and is refused. None means the one that is asked about when this is
        read; a verdict that takes its time on the way may then settle an attempt nobody looked at.
        """
        row = await self.row(run_id)
        fresh = self._clock.fresh_id()
        await self._ask(
            row.session,
            c.ResolveCall(
                id=fresh,
                run=run_id,
                call=call,
                resolution=resolution,
                attempt=attempt if attempt is not None else _attempt_in(row, call),
                content=content,
                by=by,
            ),
        )

    async def decide(
        self,
        run_id: str,
        decision: Literal["approve", "deny", "edit", "reassign"],
        *,
        call: str,
        digest: str | None = None,
        arguments: dict[str, Any] | None = None,
        roles: Sequence[str] = (),
        reason: str = "",
        by: str = "person",
        held: Sequence[str] | None = None,
    ) -> None:
        """Decide on a call that waits for approval: any node takes it, whoever runs the session.

        `digest` is that of the arguments that were looked at; without it the decision is on those
        that the call has when it is read. `by` decides and has the roles `held`; None is whoever
        has the last word. Raises `Refused`: `already_decided` with who decided when, `expired`,
        `arguments_changed` with both digests, `policy_changed`, `not_entitled`, and others.
        """
        row = await self.row(run_id)
        if (size := len(_encode(arguments))) > ARGUMENT_BYTES_MAX:
            raise _too_large("arguments", size, "ARGUMENT_BYTES_MAX", ARGUMENT_BYTES_MAX)
        command = c.DecideApproval(
            id=self._clock.fresh_id(),
            run=run_id,
            call=call,
            decision=decision,
            digest=digest,
            arguments=arguments,
            roles=tuple(roles),
            held=None if held is None else tuple(held),
            reason=reason,
            by=by,
        )
        await self._ask(row.session, command)

    async def raise_budget(
        self,
        run_id: str,
        *,
        tokens: int = 0,
        cost_micros: int = 0,
        wall_ms: int = 0,
        calls: Mapping[str, int] | None = None,
        call: str | None = None,
        reason: str = "",
        by: str = "person",
        held: Sequence[str] | None = None,
    ) -> None:
        """Add to what a run may spend: tokens, millionths of money, milliseconds from now, calls.

        A run that waits for it goes on where it stopped. With `call` only if that one waits still.
        Without any amount a run that waits is looked at again. `by` and `held` are as in `decide`.
        Raises `Refused`: `not_running`, `no_budget`, `not_limited`, `not_entitled`, and others.
        """
        more = dict(calls or {})
        for what, amount in (("tokens", tokens), ("cost_micros", cost_micros), *more.items()):
            check_amount(amount, f"run {run_id}: {what} to be added")
        check_amount(wall_ms, f"run {run_id}: wall_ms to be added")
        row = await self.row(run_id)
        command = c.RaiseBudget(
            id=self._clock.fresh_id(),
            run=run_id,
            call=call,
            tokens=tokens,
            cost_micros=cost_micros,
            wall_ms=wall_ms,
            calls=more,
            held=None if held is None else tuple(held),
            reason=reason,
            by=by,
        )
        await self._ask(row.session, command)

    async def deny_budget(
        self,
        run_id: str,
        *,
        call: str | None = None,
        reason: str = "",
        by: str = "person",
        held: Sequence[str] | None = None,
    ) -> None:
        """Give no more: calls of tools are denied, and a run that cannot ask its model fails.

        Raises `Refused` as `raise_budget`, and `not_waiting`.
        """
        row = await self.row(run_id)
        roles = None if held is None else tuple(held)
        fresh = self._clock.fresh_id()
        command = c.DenyBudget(id=fresh, run=run_id, call=call, held=roles, reason=reason, by=by)
        await self._ask(row.session, command)

    async def run(self, run_id: str) -> Run:
        """Return a run by its id. Raises `NotFound`."""
        row = await self.row(run_id)
        return Run(self, self._followers, row.session, row.id)

    async def row(self, run_id: str) -> RunRow:
        """Return the row of a run. Raises `NotFound`."""
        rows = await self._store.list(RunQuery(tenant=self.tenant, run=run_id, limit=1))
        if not rows:
            raise NotFound(f"there is no run {run_id!r}")
        return rows[0]

    async def rows(
        self,
        *,
        agent: str | None = None,
        key: str | None = None,
        status: RowStatus | None = None,
        before: tuple[int, str] | None = None,
        limit: int = ROWS_MAX,
    ) -> list[RunRow]:
        """Return rows of runs, newest first; `before` is the (created_at, id) to continue after."""
        query = RunQuery(self.tenant, None, agent, key, status, before, limit)
        return await self._store.list(query)

    async def message_of(self, row: RunRow) -> c.SendMessage | None:
        """Return what asks for a run while it waits in the inbox; else None."""
        loaded = await self._store.load(row.session)
        for entry in loaded.inbox if loaded is not None else ():
            if entry.id == row.id:
                command = c.decode_command(entry.command, entry.accepted_at)
                return command if isinstance(command, c.SendMessage) else None
        return None

    async def template(self, run_id: str) -> bytes:
        """Return the definition that a run was made under last, as `Agent.rebuilt` takes it.

        Raises `NotFound` if there is no such run, or if it has not begun.
        """
        row = await self.row(run_id)
        named = await named_last(self._store, row, self._settings.read_batch_records)
        body = None if named is None else await self._store.blob(named)
        if body is None:
            raise NotFound(f"run {run_id!r} has not begun: it has no definition yet")
        return body

    async def blob(self, address: str) -> bytes | None:
        """Return the bytes kept under a content address."""
        return await self._store.blob(address)

    def follow(self, session: SessionId, on_news: OnNews) -> Callable[[], None]:
        """Call back at news of a session until the returned function is called."""
        return self._followers.follow(session, on_news)

    def watch(self, agent: str, on_commit: OnCommit) -> Callable[[], None]:
        """Call back at news of any session of an agent until the returned function is called."""
        return self._followers.watch(self.tenant, agent, on_commit)

    async def read(
        self, session: SessionId, after: int, at_once: int | None = None
    ) -> AsyncIterator[RecordedEvent]:
        """Yield the durable events of a session after a position.

        `at_once` is how many are held in memory while whoever reads them is slow.
        """
        at_once = at_once or self._settings.read_batch_records
        while True:
            page: list[Record] = await self._store.read(session, after, at_once)
            for record in page:
                after = record.seq
                yield recorded(record.seq, record.body)
            if len(page) < at_once:
                return

    async def event(self, session: SessionId, seq: int) -> RecordedEvent | None:
        """Return the durable event of a session at a position; None if there is none."""
        found = await self._store.read(session, seq - 1, 1)
        return recorded(found[0].seq, found[0].body) if found else None

    async def answer_of(self, row: RunRow) -> Any:
        """Return the content of a completed run's answer; None for another run."""
        if row.answer is None:
            return None
        for record in await self._store.read(row.session, row.answer - 1, 1):
            return answer_in(recorded(record.seq, record.body).event, row)
        raise NotFound(f"event {row.answer} of {row.session} is missing")

    async def set_aside(self, session: SessionId) -> str | None:
        """Return why a session is in quarantine; None if it is not."""
        if self._host.is_active(session):
            return None
        loaded = await self._store.load(session)
        return None if loaded is None else loaded.quarantine

    async def check_session(self, session: SessionId) -> None:
        """Raise `Quarantined` for a session that is set aside."""
        loaded = await self._store.load(session)
        if loaded is not None and loaded.quarantine is not None:
            self._followers.set_aside(session, loaded.quarantine)
            raise quarantined(session, loaded.quarantine)

    async def release(self, agent: str, key: str) -> None:
        """Lift the quarantine of a session and go on with it. Raises `NotFound`, `Refused`."""
        session = SessionId(self.tenant, agent, key)
        loaded = await self._store.load(session)
        if loaded is not None and loaded.quarantine is None:
            raise Refused(f"session {session} is not in quarantine", "not_quarantined")
        await self._store.release(session, None)
        self._host.activate(session)

    def _check_agent(self, agent: str) -> None:
        if self._agents.of(self.tenant, agent) is None:
            known = ", ".join(self._agents.names(self.tenant)) or "none"
            raise NotFound(f"there is no agent {agent!r} here; the agents are: {known}")

    def _check_budget(self, agent: str, budget: Budget, mode: Mode) -> None:
        """Raise `InvalidInput` for a budget that a run of this message could not keep."""
        if mode == "steer":
            raise InvalidInput(
                "a message with the mode 'steer' joins a run, and has no budget of its own: leave "
                "it out, or raise that of the run"
            )
        definition = self._agents.of(self.tenant, agent)
        assert definition is not None
        countable = [tool.name for tool in definition.spec.tools if tool.builtin is None]
        check_budget(budget, countable, "the message")

    def _new_id(
        self, agent: str, session: str | None, idempotency_key: str | None, new_id: str | None
    ) -> str:
        """Return the id of a run that is asked for."""
        if idempotency_key == "":
            raise InvalidInput("an idempotency key is not empty; leave it out to have none")
        if idempotency_key is not None:
            return self.keyed(agent, session, idempotency_key)
        return new_id if new_id is not None else self._clock.fresh_id()

    async def _start_keyed(self, session: SessionId, command: c.SendMessage) -> Run:
        try:
            return await self._start(session, command)
        except KeyReused:
            raise KeyReused(
                "the idempotency key was used with another message already; "
                "a new message needs a new key"
            ) from None

    async def _start(self, session: SessionId, command: c.SendMessage) -> Run:
        now = self._clock.now_ms()
        ending = self._followers.ending(session, command.id, is_asked_for=False)
        receipt = await self._accept(session, command, now, queued_row(session, command, now))
        run = Run(self, self._followers, session, command.id, receipt)
        del ending
        return run

    async def _ask(self, session: SessionId, command: c.InboxCommand) -> None:
        """Accept a command and wait for what is decided. Raises `Refused`."""
        verdict = self._host.verdicts.of(session, command.id)
        await self._accept(session, command, self._clock.now_ms(), None)
        try:
            refusal: Refusal | None = await verdict
        except Refused:
            await self.check_session(session)
            raise
        if refusal is not None:
            raise Refused(refusal.message, refusal.code)

    async def _accept(
        self, session: SessionId, command: c.InboxCommand, now: int, row: RunRow | None
    ) -> Receipt:
        self.check()
        if self._host.draining:
            raise PerdureError("this node is stopping and accepts nothing new")
        body = _encode(command)
        if getattr(command, "fork_of", None) is not None:
            if len(body) > FORK_BYTES_MAX:
                raise _too_large("history", len(body), "FORK_BYTES_MAX", FORK_BYTES_MAX)
        elif len(body) > MESSAGE_BYTES_MAX:
            raise _too_large("message", len(body), "MESSAGE_BYTES_MAX", MESSAGE_BYTES_MAX)
        as_recorded = c.decode_command(body, now)
        if any(map(too_deep, _contents(as_recorded))):
            raise LimitExceeded(
                f"the message is nested deeper than JSON_DEPTH_MAX = {JSON_DEPTH_MAX} levels"
            )
        faults.reach("accept.before")
        entry = InboxEntry(command.id, session, body, now)
        receipt = await self._store.accept(entry, row, GENERATION)
        faults.reach("accept.after")
        if not receipt.duplicate:
            self._host.deliver(session, as_recorded)
        return receipt


def _encode(content: Any) -> bytes:
    try:
        return msgspec.json.encode(content)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the message cannot be written as JSON: {error}") from None


def _too_large(what: str, size: int, name: str, limit: int) -> LimitExceeded:
    return LimitExceeded(
        f"the {what} is {size} bytes long; at most {name} = {limit} bytes are accepted"
    )


def _groups(
    context: Sequence[UserMessage | AssistantMessage],
) -> tuple[tuple[Message, ...], ...]:
    """Return messages as groups of the history. Raises `InvalidInput` for what cannot be one."""
    for message in context:
        calls = isinstance(message, AssistantMessage) and message.tool_calls
        if calls or not isinstance(message, UserMessage | AssistantMessage):
            raise InvalidInput(
                "the context of a message is messages of a user or an assistant, without tool "
                f"calls; not {message!r:.80}"
            )
    return tuple((message,) for message in context)


def _contents(command: c.InboxCommand) -> Iterator[Any]:
    """Yield what a client may nest deeply; what a fork inherits was accepted before."""
    yield getattr(command, "content", None)
    if isinstance(command, c.SendMessage) and command.fork_of is None:
        for group in command.inherited:
            yield from (message.content for message in group)


def _attempt_in(row: RunRow, call: str) -> int | None:
    """Return the attempt of a call that a run's row asks a person about; None if it asks nobody."""
    asked = (wait for wait in row.waiting_for if wait["call"] == call)
    return next((wait.get("attempt") for wait in asked), None)


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise InvalidInput(f"the session key is a text, not {key!r}")
    odd = not key.isprintable() and any(
        ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in key
    )
    if not key or len(key) > KEY_CHARS_MAX or odd:
        raise InvalidInput(
            f"the session key {key[:40]!r} must have 1 to {KEY_CHARS_MAX} printable characters"
        )
