"""`Client`: a server's REST API for programs without an event loop."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
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


class Client:
    """A client of the server at `url`; `key` is an API key.

    `with Client(url, key) as client:` closes its connections in the end. An answer may
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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._http = httpx2.Client(**settings(url, key, timeout), transport=transport)
        self._retries = retries
        self._ids: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(
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
        return self._hold(d.ask(asked, self._retries))

    # ------------------------------------------------------------------------------ shorthands

    def agents(self) -> list[s.Agent]:
        """Return all agents, newest first."""
        return self._hold(d.agents(self._retries))

    def agent(self, agent: int | str) -> s.Agent:
        """Return an agent by its id or name. Raises `NotFound` for a name that no agent has."""
        return self._hold(d.agent(agent, self._retries))

    def define_agent(self, body: s.AgentCreate) -> s.Agent:
        """Make the agent of that name what `body` says; make it if there is none."""
        return self._hold(d.define_agent(body, self._retries))

    def send(
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
    ) -> RunHandle:
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
        return self.run(self._hold(dialogue))

    def run(self, id_: int) -> RunHandle:
        """Return the run with this id; whether there is one shows when it is asked."""
        return RunHandle(self, id_)

    def runs(
        self,
        agent: int | str | None = None,
        *,
        status: str | None = None,
        limit: int | None = None,
    ) -> list[s.Run]:
        """Return runs, newest first, of one agent or status if asked so."""
        return self._hold(d.runs(self._ids, agent, status, limit, self._retries))

    def waits(self, what: d.WaitKind | None = None, *, limit: int | None = None) -> list[s.Waiting]:
        """Return what waits for people, or one kind of it, the newest run first."""
        found: s.Page[s.Waiting] = self.call("list_waits", query=d.waits_query(what, limit))
        return list(found.data)

    def standing_approvals(self) -> list[s.StandingApproval]:
        """Return what people approved ahead."""
        found: s.Page[s.StandingApproval] = self.call("list_standing_approvals")
        return list(found.data)

    def revoke_standing_approval(self, id_: int) -> None:
        """Have people asked again, from the next call on."""
        self.call("revoke_standing_approval", id=id_)

    def sessions(self, *, archived: bool = False, limit: int | None = None) -> list[s.Session]:
        """Return sessions of all agents, the latest first."""
        return self._hold(d.sessions(archived, limit, self._retries))

    def session(self, id_: int) -> s.SessionWhole:
        """Return a session with its messages and runs."""
        found: s.SessionWhole = self.call("get_session", id=id_)
        return found

    # ---------------------------------------------------------------------------------- inside

    def _hold(self, dialogue: Dialogue[T]) -> T:
        """Carry a dialogue through to its outcome."""
        try:
            step = next(dialogue)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = dialogue.send(None)
                    continue
                try:
                    found = self._ask(step)
                except (ApiError, Unreachable) as error:
                    step = dialogue.throw(error)
                else:
                    step = dialogue.send(found)
        except StopIteration as done:
            outcome: T = done.value
            return outcome

    def _ask(self, asked: Call) -> Any:
        try:
            told = self._http.request(
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

    def _stream(self, run: int, seen: Following) -> Generator[s.Event | TextDelta, None, None]:
        """Yield what one stream tells that was not seen yet."""
        asked = call("list_events", path={"id": run})
        silence = limits(self._http.timeout, SILENCE_SECONDS_MAX)
        try:
            with self._http.sse(asked.path, headers=seen.headers(), timeout=silence) as source:
                told = source.response
                if told.status_code >= 300:
                    body = told.read()
                    raise refusal(asked, told.status_code, told.headers, body)
                for said in source:
                    item = seen.take(said)
                    if item is not None:
                        yield item
                    if seen.over:
                        return
        except httpx2.TransportError as error:
            raise unreachable(self._http.base_url, error) from error


class RunHandle:
    """A run on the server, by its id."""

    def __init__(self, client: Client, id_: int) -> None:
        self.id = id_
        self._client = client

    def __repr__(self) -> str:
        return f"RunHandle({self.id})"

    def get(self) -> s.Run:
        """Return the run as it stands."""
        found: s.Run = self._client.call("get_run", id=self.id)
        return found

    def wait(self, timeout: float | None = None) -> s.Run:
        """Wait until the run has ended or waits for a person, at most `timeout` seconds.

        Returns it as it stands then, whether or not it has.
        """
        return self._client._hold(d.wait(self.id, timeout))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the run's output, at most `timeout` seconds.

        Raises `RunFailed`, `RunCancelled`, `RunWaits` when it needs a person, `TimeoutError`.
        """
        return self._client._hold(d.result(self.id, timeout))

    def events(self, after: int = 0) -> Generator[s.Event, None, None]:
        """Yield the run's events after sequence `after` to its end, in order, each once."""
        for item in self.stream(after):
            if isinstance(item, s.Event):
                yield item

    def stream(self, after: int = 0) -> Generator[s.Event | TextDelta, None, None]:
        """Yield events like `events`, and between them the text that models are writing.

        A server that goes away meanwhile is waited for, and asked for what came after the last
        event seen.
        """
        seen = Following(after)
        while not seen.over:
            try:
                yield from self._client._stream(self.id, seen)
                if not seen.over:
                    seen.ended(d.is_closed(self.get()))
            except (Unreachable, ApiError) as error:
                if isinstance(error, ApiError) and error.status not in d.TEMPORARY:
                    raise
            if not seen.over:
                seen.failures += 1
                time.sleep(d.delay(seen.failures - 1))

    def reply(self, answer: Any, *, call: str | None = None) -> None:
        """Answer the run's oldest open question, or the one that `call` names."""
        self._client.call(
            "reply_to_run",
            id=self.id,
            body=s.ReplyCreate(answer=answer, call=call),
            idempotency_key=d.fresh_key(),
        )

    def cancel(self, reason: str | None = None) -> None:
        """End the run. Raises `ApiError` (409) when it has ended already."""
        self._client.call(
            "cancel_run",
            id=self.id,
            body=s.CancelCreate(reason=reason),
            idempotency_key=d.fresh_key(),
        )

    def retry(self) -> RunHandle:
        """Start again what has ended; returns the new run."""
        accepted = self._client.call("retry_run", id=self.id, idempotency_key=d.fresh_key())
        return RunHandle(self._client, accepted.run_id)

    def fork(
        self,
        step: int,
        message: Any = None,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
    ) -> RunHandle:
        """Go on from the run after `step`, in a session of its own; returns the new run.

        Raises `ApiError`: 409 for a run that goes on, 422 for a step that it has not come to.
        """
        body = s.ForkCreate(step=step, message=message, model=model, system_prompt=system_prompt)
        made = self._client.call("fork_run", id=self.id, body=body, idempotency_key=d.fresh_key())
        return RunHandle(self._client, made.run_id)

    def resolve(
        self,
        call: str,
        resolution: d.Resolution,
        *,
        attempt: int | None = None,
        content: Any = None,
    ) -> None:
        """Say what became of a call whose outcome nobody there can know; see `waits`."""
        body = s.ResolveCreate(call=call, resolution=resolution, attempt=attempt, content=content)
        self._client.call("resolve_call", id=self.id, body=body, idempotency_key=d.fresh_key())

    def decide(
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
        self._client.call("decide_approval", id=self.id, body=body, idempotency_key=d.fresh_key())

    def approve_ahead(
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
        made: s.StandingApproval = self._client.call(
            "create_standing_approval", body=body, idempotency_key=d.fresh_key()
        )
        return made

    def raise_budget(
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
        self._client.call("raise_budget", id=self.id, body=body, idempotency_key=d.fresh_key())

    def deny_budget(self, *, call: str | None = None, reason: str = "") -> None:
        """Give no more: calls of tools are denied, and a run that cannot ask its model fails."""
        body = s.RaiseCreate(deny=True, call=call, reason=reason or None)
        self._client.call("raise_budget", id=self.id, body=body, idempotency_key=d.fresh_key())
