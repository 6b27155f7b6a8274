"""Standing approvals: what people approve ahead, looking at one call that is like the others."""

from __future__ import annotations

from typing import Any, Literal

from msgspec.structs import replace

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.api.limits import STANDING_MAX
from perdure.api.shapes import timestamp
from perdure.core.agent import ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.gate import Asked
from perdure.core.runs import RunRow
from perdure.policy.reading import read_predicates
from perdure.policy.standing import declaration, why_not
from perdure.ports import entries
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import listed
from perdure.server.policies import standing_of

_MINUTE_MS = 60_000


async def list_standing_approvals(desk: Desk, request: Request) -> Answer:
    """What was approved ahead, by id."""
    return Answer(
        await listed(
            desk, request.query, entries.StandingApproval, lambda entry: _shown(desk, entry)
        )
    )


async def create_standing_approval(desk: Desk, request: Request) -> Answer:
    """Approve ahead what is like a call that waits. It would let that call through, or is refused.

    The call itself goes on waiting: it is approved by a decision of its own.
    """
    body: shapes.StandingApprovalCreate = request.body
    principal = request.by
    assert principal is not None, "nothing is approved without a key"
    try:
        row = await desk.row(body.run_id)
    except Rejected:
        raise Rejected(422, {"run_id": ["does not exist"]}) from None
    wait = _waiting(row, body)
    agent = desk.agents.of(desk.tenant, row.session.agent)
    tool = None if agent is None else agent.tools_by_name.get(wait["tool"])
    if agent is None or tool is None:
        raise Rejected(409, f"the agent has no tool {wait['tool']!r} any more")
    try:
        read_predicates(body.arguments, "arguments")
    except InvalidInput as error:
        raise Rejected(422, {"arguments": [str(error)]}) from None
    gate, now = desk.agents.policy(desk.tenant), desk.clock.now_ms()
    entry = entries.StandingApproval(
        agent=agent.spec.name,
        tool=tool.name,
        declared=declaration(tool),
        policy=gate.version,
        arguments=body.arguments,
        expires_at=now + body.expires_minutes * _MINUTE_MS,
        uses_per_session=body.uses_per_session,
        by=principal.name,
        roles=principal.roles,
        reason=body.reason or "",
    )
    wanted = standing_of(entry)
    assert wanted is not None, "the predicates were just read"
    asked = Asked(desk.tenant, agent.spec, tool, wait["arguments"], now)
    if (why := why_not(wanted, gate, asked)) is not None:
        raise Rejected(409, f"it would not let call {body.call!r} through: {why}")
    await _make_room(desk, now)
    made = await desk.catalog.create(entry)
    await desk.agents.changed(desk.tenant)
    return Answer(shapes.Data(_shown(desk, made)), 201)


async def revoke_standing_approval(desk: Desk, request: Request) -> Answer:
    """Have people asked again, from the next call on."""
    found = await desk.catalog.get(entries.StandingApproval, decode_id(request.path["id"]))
    if found is None or found.archived_at is not None:
        raise Rejected(404, "not found")
    await _archive(desk, found.id)
    await desk.agents.changed(desk.tenant)
    return Answer(None, 204)


def _waiting(row: RunRow, body: shapes.StandingApprovalCreate) -> dict[str, Any]:
    """Return what is known of the call that waits. Raises `Rejected` (409)."""
    for wait in row.waiting_for:
        if wait["what"] != "approval" or wait["call"] != body.call:
            continue
        if body.digest not in (None, wait["digest"]):
            raise Rejected(409, f"the arguments of call {body.call!r} have changed: look at them")
        if wait["arguments"] is None:
            raise Rejected(409, "the arguments are too large to say what is like them")
        return wait
    raise Rejected(409, f"call {body.call!r} does not wait for approval")


async def _make_room(desk: Desk, now: int) -> None:
    """Put away what has expired. Raises `Rejected` (409) if there are too many all the same."""
    found = await desk.catalog.list(entries.StandingApproval)
    over = [one for one in found if one.expires_at <= now]
    for one in over:
        await _archive(desk, one.id)
    if len(found) - len(over) >= STANDING_MAX:
        raise Rejected(409, f"there are {STANDING_MAX} standing approvals already: revoke some")


async def _archive(desk: Desk, id_: int) -> None:
    now = desk.clock.now_ms()
    await desk.catalog.change(
        entries.StandingApproval,
        id_,
        lambda one: one if one.archived_at is not None else replace(one, archived_at=now),
    )


def _shown(desk: Desk, entry: entries.StandingApproval) -> shapes.StandingApproval:
    return shapes.StandingApproval(
        id=entry.id,
        agent=entry.agent,
        tool=entry.tool,
        arguments=entry.arguments,
        expires_at=timestamp(entry.expires_at),
        uses_per_session=entry.uses_per_session,
        by=entry.by,
        roles=entry.roles,
        reason=entry.reason,
        policy=entry.policy,
        standing=_standing(desk, entry),
        inserted_at=timestamp(entry.inserted_at),
    )


def _standing(
    desk: Desk, entry: entries.StandingApproval
) -> Literal["in_force", "expired", "policy_changed", "tool_changed", "revoked"]:
    if entry.expires_at <= desk.clock.now_ms():
        return "expired"
    if entry.archived_at is not None:
        return "revoked"
    if entry.policy != desk.agents.policy(desk.tenant).version:
        return "policy_changed"
    declared = {declaration(tool) for tool in _tools(desk, entry)}
    return "in_force" if entry.declared in declared else "tool_changed"


def _tools(desk: Desk, entry: entries.StandingApproval) -> list[ToolSpec]:
    """Return the tools that agents of this name have under that name."""
    known = (desk.agents.of(desk.tenant, name) for name in desk.agents.names(desk.tenant))
    named = [agent for agent in known if agent is not None and agent.spec.name == entry.agent]
    found = (agent.tools_by_name.get(entry.tool) for agent in named)
    return [tool for tool in found if tool is not None]
