"""Clients whose operations are on record: what was invoked, and what came back.

An operation without an answer is in doubt: it may have taken effect or not. One that was answered
`ok` must be found in the log ever after. The client is also the person who is asked: it looks at
the far end before it says what became of a call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, TypeVar

from perdure.bootstrap import Node, Run
from perdure.core.errors import PerdureError, Refused
from perdure.core.ids import SessionId
from perdure.testing.ledger import Ledger

T = TypeVar("T")
APPROVER = "ann"
ASKS = ("question_asked", "decision_requested", "approval_requested")
ANSWER = "yes, go on"


class Client:
    """Talks to a node and notes every operation in the ledger.

    `results` are the results of tools by name: what a person says of a call that did take effect.
    """

    def __init__(self, node: Node, ledger: Ledger, results: Mapping[str, Any]) -> None:
        self._node = node
        self._ledger = ledger
        self._results = results
        self._numbers = count(1)

    async def send(self, agent: str, content: str, session: str, key: str) -> Run:
        """Send a message under an idempotency key."""
        return await self._recorded(
            "send",
            lambda: self._node.send(agent, content, session=session, idempotency_key=key),
            lambda run: {"run": run.id},
            key=key,
            session=str(SessionId(self._node.tenant, agent, session)),
        )

    async def cancel(self, run: Run) -> None:
        """Cancel a run; that it had ended already is no error."""
        await self._told("cancel", run, lambda: self._node.cancel(run.id))

    async def attend(self, run: Run) -> Any:
        """Answer what a run asks people, until it ends; return its result.

        Raises `RunFailed` and `RunCancelled`.
        """
        async for one in run.events():
            if one.type in ASKS:
                await self._answer(run)
        return await run.result()

    async def attend_until(self, run: Run, kind: str) -> None:
        """Answer what a run asks people, until an event of this type is in its log."""
        async for one in run.events():
            if one.type == kind:
                return
            if one.type in ASKS:
                await self._answer(run)

    async def _answer(self, run: Run) -> None:
        for wait in (await run.row()).waiting_for:
            if wait["what"] == "answer":
                await self._told("reply", run, lambda: self._node.reply(run.id, ANSWER))
            elif wait["what"] == "decision":
                await self._decide(run, wait)
            elif wait["what"] == "approval":
                await self._approve(run, wait)

    async def _decide(self, run: Run, wait: dict[str, Any]) -> None:
        happened = self._ledger.rule_out(wait["key"], wait["attempt"])
        verdict: Any = "happened" if happened else "did_not_happen"
        content = self._results.get(wait["tool"]) if happened else None
        await self._told(
            "resolve",
            run,
            lambda: self._node.resolve(
                run.id, wait["call"], verdict, attempt=wait["attempt"], content=content
            ),
        )

    async def _approve(self, run: Run, wait: dict[str, Any]) -> None:
        asked = {"call": wait["call"], "digest": wait["digest"], "by": APPROVER}
        await self._told("decide", run, lambda: self._node.decide(run.id, "approve", **asked))

    async def _told(self, do: str, run: Run, operation: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._recorded(do, operation, lambda _: {}, run=run.id, session=str(run.session))
        except Refused:
            return

    async def _recorded(
        self,
        do: str,
        operation: Callable[[], Awaitable[T]],
        found: Callable[[T], dict[str, Any]],
        **fields: Any,
    ) -> T:
        number = next(self._numbers)

        def note(state: str, **more: Any) -> None:
            self._ledger.note("client", do=do, op=number, state=state, **fields, **more)

        note("invoke")
        try:
            answer = await operation()
        except PerdureError as error:
            note("fail", error=type(error).__name__)
            raise
        note("ok", **found(answer))
        return answer
