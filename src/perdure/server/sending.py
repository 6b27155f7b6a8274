"""Messages: how one is accepted as a run, or as the answer that a run waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from perdure.api.errors import INVALID, Rejected
from perdure.core.agent import check_durability
from perdure.core.budget import Budget
from perdure.core.errors import InvalidInput, NotFound, Refused
from perdure.core.ids import SessionId
from perdure.core.messages import AssistantMessage, UserMessage
from perdure.ports import entries
from perdure.server.desk import GARD_DESTROYED, UNENDED, Desk
from perdure.server.limits import RECOUNTED_EVERY_MS
from perdure.server.repeats import Stored


async def send(
    desk: Desk,
    agent: entries.Agent,
    content: Any,
    *,
    key: str | None = None,
    mode: Literal["queue", "steer", "interrupt", "reject"] = "queue",
    idempotency_key: str | None = None,
    gard: int | None = None,
    trigger: str = "message",
    context: Sequence[UserMessage | AssistantMessage] = (),
    budget: Budget | None = None,
) -> str:
    """Accept a message; return the id of its run.

    A message to a conversation that waits for an answer is that answer, and its run the one
    that waits. Raises `Rejected`: 409 in mode `reject` when a run is in progress, 422 for an
    answer with a context or a budget, or for a budget that cannot be kept.
    """
    check_demand(desk, agent)
    if key is not None and mode in ("queue", "reject"):
        session = await desk.session(agent.id, key)
        if idempotency_key is None or not await _knows(desk, session, idempotency_key):
            besides = "context" if context else "budget" if budget is not None else None
            answered = await _answer(desk, session, content, idempotency_key, besides)
            if answered is not None:
                return answered
            if mode == "reject" and await desk.current(session) is not None:
                raise Rejected(409, "agent is busy")
    await make_room(desk)
    meta = {"trigger": trigger, "gard": gard}
    inside = None if key is None else (await desk.session(agent.id, key)).key
    run_id = desk.clock.fresh_id()
    if idempotency_key is not None:
        run_id = desk.runs.keyed(str(agent.id), inside, idempotency_key)
    # Before the run can begin: its tasks tell workers its number, and endpoints are owed it.
    if await desk.webhooks.surely_listens(desk.tenant):
        await asyncio.gather(desk.numbers.run(run_id), _expect(desk, run_id, idempotency_key))
    else:
        await desk.numbers.run(run_id)
    run = await desk.runs.send(
        str(agent.id),
        content,
        session=inside,
        run_id=run_id,
        mode="queue" if mode == "reject" else mode,
        idempotency_key=idempotency_key,
        meta={name: value for name, value in meta.items() if value is not None},
        context=context,
        budget=budget,
    )
    if gard is not None:
        await _stay_out_of(desk, gard, run.id)
    return run.id


def check_demand(desk: Desk, agent: entries.Agent) -> None:
    """Raise `Rejected` (409) for an agent that demands more durability than there is.

    None is defined so, but the store may be another one since.
    """
    definition = desk.agents.of(desk.tenant, str(agent.id))
    if definition is not None:
        try:
            check_durability(definition.spec, desk.durability)
        except InvalidInput as error:
            raise Rejected(409, str(error)) from None


async def _expect(desk: Desk, run_id: str, idempotency_key: str | None) -> None:
    """Have endpoints told of a run that is about to begin, unless a repeat asks for it."""
    if idempotency_key is not None:
        with suppress(NotFound):
            await desk.runs.row(run_id)
            return
    await desk.webhooks.expect(desk.tenant, run_id)


async def _stay_out_of(desk: Desk, gard: int, run: str) -> None:
    """End a run whose gard was destroyed while its message was accepted."""
    try:
        await desk.gard(gard)
    except Rejected:
        await desk.end([await desk.runs.row(run)], GARD_DESTROYED)
        raise


async def make_room(desk: Desk) -> None:
    """Count a run that is to begin. Raises `Rejected` (429) if too many have not ended."""

    async def unended(most: int) -> int:
        found = 0
        for status in UNENDED:
            found += len(await desk.rows(most - found, statuses=(status,)))
        return found

    now_ms = desk.clock.monotonic_ms()
    if not await desk.room.begin(desk.tenant, now_ms, unended):
        said = "too many runs have not ended: wait until some have, or cancel some"
        raise Rejected(429, said, retry_after_s=RECOUNTED_EVERY_MS // 1000)


async def _knows(desk: Desk, session: SessionId, idempotency_key: str) -> bool:
    """Say whether a message with this key has started a run of this session already."""
    try:
        await desk.runs.row(desk.runs.keyed(session.agent, session.key, idempotency_key))
    except NotFound:
        return False
    return True


async def _answer(
    desk: Desk,
    session: SessionId,
    content: Any,
    idempotency_key: str | None,
    besides: str | None,
) -> str | None:
    """Answer what a session's run asks; return the run, None if it asks nothing.

    `besides` is what came with the message that no answer can have.
    """

    async def reply() -> Stored:
        assert row is not None
        await desk.runs.reply(row.id, content)
        return Stored(202, row.id.encode())

    what, request = f"answer {session.agent}/{session.key}", msgspec.json.encode(content)
    if idempotency_key is not None:
        known = await desk.repeats.known(what, idempotency_key, request)
        if known is not None:
            return known.body.decode()
    row = await desk.current(session)
    if row is None or all(wait["what"] != "answer" for wait in row.waiting_for):
        return None
    if besides is not None:
        said = f"{INVALID}: the conversation waits for an answer, and an answer has none"
        raise Rejected(422, {besides: [said]})
    with suppress(Refused):
        if idempotency_key is None:
            return (await reply()).body.decode()
        return (await desk.repeats.once(what, idempotency_key, request, reply)).body.decode()
    return None
