"""Forks: a run goes on after one of its steps, in a session of its own, maybe as another agent."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from perdure.api.errors import Rejected
from perdure.api.limits import NAME_CHARS_MAX
from perdure.core.errors import InvalidInput, LimitExceeded, NotFound, Refused
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports import entries
from perdure.ports.catalog import NameTaken
from perdure.server.desk import Desk
from perdure.server.sending import check_demand, make_room


async def fork(
    desk: Desk,
    row: RunRow,
    step: int,
    message: Any = None,
    *,
    model: str | None = None,
    system_prompt: str | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Go on from a run after `step`; return the id of the new run, which has the run's gard.

    Another `model` or `system_prompt` makes a copy of the agent, which is named after the new run.
    Raises `Rejected`: 404 if the agent or the gard is gone, 409 for a run that is going on or never
    began; and `InvalidInput` for a step that the run has not come to.
    """
    if row.status not in TERMINAL and row.status != "waiting":
        raise Rejected(409, "run is still in progress")
    if row.started_seq is None:
        raise Rejected(409, "run never began: send its message again")
    agent = await desk.agent(int(row.session.agent), archived=False)
    gard = await desk.gard((await desk.meta(row)).get("gard"))
    new_id = desk.clock.fresh_id()
    if idempotency_key is not None:
        new_id = desk.runs.keyed(row.session.agent, f"fork\x1f{row.id}", idempotency_key)
        if await _is_known(desk, new_id):
            return new_id
    await make_room(desk)
    # Before the run can begin: its tasks tell workers its number, and endpoints are owed it.
    number = await desk.numbers.run(new_id)
    await desk.webhooks.expect(desk.tenant, new_id)
    changed = {"model": model, "system_prompt": system_prompt}
    changes = {name: value for name, value in changed.items() if value is not None}
    copy = None
    if any(getattr(agent, name) != value for name, value in changes.items()):
        agent = copy = await _copy(desk, agent, number, changes)
    source = {"run_id": await desk.numbers.run(row.id), "step": step, **changes}
    told = {"trigger": "fork", "fork": source, **({} if gard is None else {"gard": gard})}
    check_demand(desk, agent)
    try:
        run = await desk.runs.fork(
            row.id, step, message, agent=str(agent.id), new_id=new_id, meta=told
        )
    except (InvalidInput, LimitExceeded, Refused):
        if copy is not None:
            await desk.catalog.delete(entries.Agent, copy.id)
            await desk.agents.changed(desk.tenant)
        raise
    return run.id


async def _is_known(desk: Desk, run: str) -> bool:
    try:
        await desk.runs.row(run)
    except NotFound:
        return False
    return True


async def _copy(
    desk: Desk, agent: entries.Agent, number: int, changes: dict[str, str]
) -> entries.Agent:
    """Return a copy of an agent with changes: that which is there already, if this comes twice."""
    suffix = f"-fork-{number}"
    name = agent.name[: NAME_CHARS_MAX - len(suffix)] + suffix
    wanted = replace(agent, id=0, revision=0, name=name, **changes)
    try:
        made = await desk.catalog.create(wanted)
    except NameTaken:
        found = await desk.catalog.find(entries.Agent, name)
        if found is None or any(getattr(found, one) != value for one, value in changes.items()):
            said = f"another agent is named {name!r}, as the copy would be: rename it"
            raise Rejected(409, said) from None
        made = found
    await desk.agents.changed(desk.tenant)
    return made
