"""`AsyncClient`: a server's REST API for programs with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from perdure.api import shapes as s
from perdure.client import dialogues as d
from perdure.client.calls import Call, Pause, answer, call, refusal
from perdure.client.dialogues import Dialogue, Mode, T
from perdure.client.errors import ApiError, Unreachable
from perdure.client.following import SILENCE_SECONDS_MAX, Following, TextDelta
from perdure.client.http import limits, settings, unreachable


class AsyncClient:
    """A client of the server at `url`; `key` is an API key.

    `async with AsyncClient(url, key) as client:` closes its connections in the end. An answer may
    take `timeout` seconds. What can be asked twice without harm is asked again `retries` times when
    the server is away. `transport` is for tests. Every method raises `ApiError` and `Unreachable`.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx2.AsyncClient(**settings(url, key, timeout), transport=transport)
        self._retries = retries
        self._ids: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self,
        operation: str,
        *,
        query: msgspec.Struct | None = None,
        body: Any = None,
        idempotency_key: str | None = None,
        **path: int | str,
    ) -> Any:
        """Ask for any operation of `perdure.api.operations` by its id, as `call("get_run", id=7)`.

        Returns its answer, out of the envelope `data`; a list comes as a `Page`.
        """
        asked = call(operation, query=query, body=body, key=idempotency_key, path=path)
        return await self._hold(d.ask(asked, self._retries))

    # ------------------------------------------------------------------------------ shorthands

    async def agents(self) -> list[s.Agent]:
        """Return all agents, newest first."""
        return await self._hold(d.agents(self._retries))

    async def agent(self, agent: int | str) -> s.Agent:
        """Return an agent by its id or name. Raises `NotFound` for a name that no agent has."""
        return await self._hold(d.agent(agent, self._retries))

    async def define_agent(self, body: s.AgentCreate) -> s.Agent:
        """Make the agent of that name what `body` says; make it if there is none."""
        return await self._hold(d.define_agent(body, self._retries))

    async def send(
        self,
        agent: int | str,
        content: Any,
        *,
        session: str | None = None,
        mode: Mode = "queue",
        idempotency_key: str | None = None,
        gard: int | None = None,
        context: s.MessageContext | None = None,
        budget: s.BudgetCreate | None = None,
    ) -> AsyncRunHandle:
        """Send a message; when this returns, it is durable, and its run goes on by itself.

        Without `session` the message gets a session of its own. The same `idempotency_key` gives
        the same run. `mode` says what becomes of it while a run is in progress in the session. A
        `budget` may be less than the agent's, never more.
        """
        dialogue = d.send(
            self._ids,
            agent,
            content,
            session=session,
            mode=mode,
            idempotency_key=idempotency_key,
            gard=gard,
            context=context,
            budget=budget,
            retries=self._retries,
        )
        return self.run(await self._hold(dialogue))

    def run(self, id_: int) -> AsyncRunHandle:
        """Return the run with this id; whether there is one shows when it is asked."""
        return AsyncRunHandle(self, id_)

    async def runs(
        self,
        agent: int | str | None = None,
        *,
        status: str | None = None,
        limit: int | None = None,
    ) -> list[s.Run]:
        """Return runs, newest first, of one agent or status if asked so."""
        return await self._hold(d.runs(self._ids, agent, status, limit, self._retries))

    async def waits(
        self, what: d.WaitKind | None = None, *, limit: int | None = None
    ) -> list[s.Waiting]:
        """Return what waits for people, or one kind of it, the newest run first."""
        found: s.Page[s.Waiting] = await self.call("list_waits", query=d.waits_query(what, limit))
        return list(found.data)

    async def standing_approvals(self) -> list[s.StandingApproval]:
        """Return what people approved ahead."""
        found: s.Page[s.StandingApproval] = await self.call("list_standing_approvals")
        return list(found.data)

    async def revoke_standing_approval(self, id_: int) -> None:
        """Have people asked again, from the next call on."""
        await self.call("revoke_standing_approval", id=id_)

    async def sessions(
        self, *, archived: bool = False, limit: int | None = None
    ) -> list[s.Session]:
        """Return sessions of all agents, the latest first."""
        return await self._hold(d.sessions(archived, limit, self._retries))

    async def session(self, id_: int) -> s.SessionWhole:
        """Return a session with its messages and runs."""
        found: s.SessionWhole = await self.call("get_session", id=id_)
        return found

    # ---------------------------------------------------------------------------------- inside

    async def _hold(self, dialogue: Dialogue[T]) -> T:
        """Carry a dialogue through to its outcome."""
        try:
            step = next(dialogue)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = dialogue.send(None)
                    continue
                try:
                    found = await self._ask(step)
                except (ApiError, Unreachable) as error:
                    step = dialogue.throw(error)
                else:
                    step = dialogue.send(found)
        except StopIteration as done:
            outcome: T = done.value
            return outcome

    async def _ask(self, asked: Call) -> Any:
        try:
            told = await self._http.request(
                asked.method,
                asked.path,
                params=asked.query,
                content=asked.body,
                headers=asked.headers(),
                timeout=limits(self._http.timeout, asked.hold_s),
            )
        except httpx2.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        return answer(asked, told.status_code, told.headers, told.content)

    async def _stream(self, run: int, seen: Following) -> AsyncGenerator[s.Event | TextDelta, None]:
        """Yield what one stream tells that was not seen yet."""
        asked = call("list_events", path={"id": run})
        silence = limits(self._http.timeout, SILENCE_SECONDS_MAX)
        try:
            async with self._http.sse(
                asked.path, headers=seen.headers(), timeout=silence
            ) as source:
                told = source.response
                if told.status_code >= 300:
                    body = await told.aread()
                    raise refusal(asked, told.status_code, told.headers, body)
                async for said in source:
                    item = seen.take(said)
                    if item is not None:
                        yield item
                    if seen.over:
                        return
        except httpx2.TransportError as error:
            raise unreachable(self._http.base_url, error) from error


class AsyncRunHandle:
    """A run on the server, by its id."""

    def __init__(self, client: AsyncClient, id_: int) -> None:
        self.id = id_
        self._client = client

    def __repr__(self) -> str:
        return f"AsyncRunHandle({self.id})"

    async def get(self) -> s.Run:
        """Return the run as it stands."""
        found: s.Run = await self._client.call("get_run", id=self.id)
        return found

    async def wait(self, timeout: float | None = None) -> s.Run:  # noqa: ASYNC109
        """Wait until the run has ended or waits for a person, at most `timeout` seconds.

        Returns it as it stands then, whether or not it has.
        """
        return await self._client._hold(d.wait(self.id, timeout))

    async def result(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Wait for the run's output, at most `timeout` seconds.

        Raises `RunFailed`, `RunCancelled`, `RunWaits` when it needs a person, `TimeoutError`.
        """
        return await self._client._hold(d.result(self.id, timeout))

    async def events(self, after: int = 0) -> AsyncGenerator[s.Event, None]:
        """Yield the run's events after sequence `after` to its end, in order, each once."""
        async with aclosing(self.stream(after)) as items:
            async for item in items:
                if isinstance(item, s.Event):
                    yield item

    async def stream(self, after: int = 0) -> AsyncGenerator[s.Event | TextDelta, None]:
        """Yield events like `events`, and between them the text that models are writing.

        A server that goes away meanwhile is waited for, and asked for what came after the last
        event seen.
        """
        seen = Following(after)
        while not seen.over:
            try:
                async with aclosing(self._client._stream(self.id, seen)) as items:
                    async for item in items:
                        yield item
                if not seen.over:
                    seen.ended(d.is_closed(await self.get()))
            except (Unreachable, ApiError) as error:
                if isinstance(error, ApiError) and error.status not in d.TEMPORARY:
                    raise
            if not seen.over:
                seen.failures += 1
                await asyncio.sleep(d.delay(seen.failures - 1))

    async def reply(self, answer: Any, *, call: str | None = None) -> None:
        """Answer the run's oldest open question, or the one that `call` names."""
        await self._client.call(
            "reply_to_run",
            id=self.id,
            body=s.ReplyCreate(answer=answer, call=call),
            idempotency_key=d.fresh_key(),
        )

    async def cancel(self, reason: str | None = None) -> None:
        """End the run. Raises `ApiError` (409) when it has ended already."""
        await self._client.call(
            "cancel_run",
            id=self.id,
            body=s.CancelCreate(reason=reason),
            idempotency_key=d.fresh_key(),
        )

    async def retry(self) -> AsyncRunHandle:
        """Start again what has ended; returns the new run."""
        accepted = await self._client.call("retry_run", id=self.id, idempotency_key=d.fresh_key())
        return AsyncRunHandle(self._client, accepted.run_id)

    async def fork(
        self,
        step: int,
        message: Any = None,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
    ) -> AsyncRunHandle:
        """Go on from the run after `step`, in a session of its own; returns the new run.

        Raises `ApiError`: 409 for a run that goes on, 422 for a step that it has not come to.
        """
        body = s.ForkCreate(step=step, message=message, model=model, system_prompt=system_prompt)
        made = await self._client.call(
            "fork_run", id=self.id, body=body, idempotency_key=d.fresh_key()
        )
        return AsyncRunHandle(self._client, made.run_id)

    async def resolve(
        self,
        call: str,
        resolution: d.Resolution,
        *,
        attempt: int | None = None,
        content: Any = None,
    ) -> None:
        """Say what became of a call whose outcome nobody there can know; see `waits`."""
        body = s.ResolveCreate(call=call, resolution=resolution, attempt=attempt, content=content)
        await self._client.call(
            "resolve_call", id=self.id, body=body, idempotency_key=d.fresh_key()
        )

    async def decide(
        self,
        call: str,
        decision: d.Decision,
        *,
        digest: str | None = None,
        arguments: dict[str, Any] | None = None,
        roles: Sequence[str] = (),
        reason: str = "",
    ) -> None:
        """Decide on a call that waits for approval; see `waits`.

        `digest` is that of the arguments that were looked at. Raises `ApiError` (409) if it was
        decided already, with who decided when, or if arguments or policy have changed since.
        """
        body = s.DecisionCreate(
            call=call,
            decision=decision,
            digest=digest,
            arguments=arguments,
            roles=tuple(roles),
            reason=reason or None,
        )
        await self._client.call(
            "decide_approval", id=self.id, body=body, idempotency_key=d.fresh_key()
        )

    async def approve_ahead(
        self,
        call: str,
        arguments: list[dict[str, Any]],
        *,
        expires_minutes: int,
        uses_per_session: int | None = None,
        digest: str | None = None,
        reason: str = "",
    ) -> s.StandingApproval:
        """Approve ahead what is like a call that waits for approval; decide on that one as well.

        `arguments` are predicates as a policy's rules have them, as in
        `{"path": "cents", "at_most": 5000}`. Raises `ApiError` (409) with what stands against it.
        """
        body = s.StandingApprovalCreate(
            run_id=self.id,
            call=call,
            arguments=arguments,
            expires_minutes=expires_minutes,
            uses_per_session=uses_per_session,
            digest=digest,
            reason=reason or None,
        )
        made: s.StandingApproval = await self._client.call(
            "create_standing_approval", body=body, idempotency_key=d.fresh_key()
        )
        return made

    async def raise_budget(
        self,
        *,
        tokens: int = 0,
        cost: str = "0",
        wall_ms: int = 0,
        calls: Mapping[str, int] | None = None,
        call: str | None = None,
        reason: str = "",
    ) -> None:
        """Add to what the run may spend: tokens, dollars, milliseconds from now on, calls of tools.

        A run that waits for it goes on where it stopped; without any amount it is looked at again.
        With `call` only if that one waits still. Raises `ApiError` (409) for a run that has ended
        or has no budget, or for what its budget does not limit.
        """
        body = s.RaiseCreate(
            call=call,
            tokens=tokens,
            cost=cost,
            wall_ms=wall_ms,
            calls=None if calls is None else dict(calls),
            reason=reason or None,
        )
        await self._client.call(
            "raise_budget", id=self.id, body=body, idempotency_key=d.fresh_key()
        )

    async def deny_budget(self, *, call: str | None = None, reason: str = "") -> None:
        """Give no more: calls of tools are denied, and a run that cannot ask its model fails."""
        body = s.RaiseCreate(deny=True, call=call, reason=reason or None)
        await self._client.call(
            "raise_budget", id=self.id, body=body, idempotency_key=d.fresh_key()
        )
