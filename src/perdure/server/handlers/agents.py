"""Agents: kept in the catalog, read before every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict, replace

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.definition import agent_spec
from perdure.api.errors import Rejected
from perdure.core.agent import check_durability
from perdure.core.errors import InvalidInput
from perdure.core.references import key_shaped
from perdure.core.template import read_template
from perdure.ports import entries
from perdure.server import showing
from perdure.server.catalogued import OWN_CONFIG
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import listed


async def list_agents(desk: Desk, request: Request) -> Answer:
    """All agents, the newest first; archived ones are left out."""
    return Answer(await listed(desk, request.query, entries.Agent, showing.agent, newest=True))


async def create_agent(desk: Desk, request: Request) -> Answer:
    """Make an agent."""
    body: shapes.AgentCreate = request.body
    _check_config(desk, body.name, body.model_config or {})
    entry = entries.Agent(
        name=body.name,
        system_prompt=body.system_prompt,
        purpose=body.purpose,
        status=body.status,
        model=body.model,
        model_config=body.model_config or {},
        tools_config=body.tools_config or {},
        max_steps=body.max_steps,
    )
    made = await desk.catalog.create(entry)
    await desk.agents.changed(desk.tenant)
    return Answer(shapes.Data(showing.agent(made)), 201)


async def get_agent(desk: Desk, request: Request) -> Answer:
    """One agent, archived or not."""
    return Answer(shapes.Data(showing.agent(await desk.agent(decode_id(request.path["id"])))))


async def update_agent(desk: Desk, request: Request) -> Answer:
    """Change an agent: the next model call is made by the new definition."""
    given = {name: value for name, value in asdict(request.body).items() if value is not UNSET}
    for name in ("model_config", "tools_config"):
        if name in given and given[name] is None:
            given[name] = {}
    _check_config(desk, given.get("name", ""), given.get("model_config", {}))

    def change(entry: entries.Agent) -> entries.Agent:
        if entry.archived_at is not None:
            raise Rejected(404, "not found")
        return replace(entry, **given)

    changed = await desk.catalog.change(entries.Agent, decode_id(request.path["id"]), change)
    if changed is None:
        raise Rejected(404, "not found")
    await desk.agents.changed(desk.tenant)
    return Answer(shapes.Data(showing.agent(changed)))


def _check_config(desk: Desk, name: str, config: Mapping[str, Any]) -> None:
    """Refuse what could not be read, looks like a secret, or demands more than the store gives.

    Texts of a definition are its author's: a prompt may tell how a key looks.
    """
    try:
        if OWN_CONFIG in config:
            check_durability(read_template(config[OWN_CONFIG]), desk.durability)
        check_durability(agent_spec(name=name, model="", model_config=config), desk.durability)
    except InvalidInput as error:
        raise Rejected(422, {"model_config": [str(error)]}) from None
    if key_shaped({name: value for name, value in config.items() if name != OWN_CONFIG}):
        expected = "a secret has no place in it: a worker reads its keys where it runs"
        raise Rejected(422, {"model_config": [expected]})


async def archive_agent(desk: Desk, request: Request) -> Answer:
    """Put an agent away: it takes no messages, and its name is free. Its runs end first."""
    entry = await desk.agent(decode_id(request.path["id"]), archived=False)
    active = await desk.active(str(entry.id))
    if active and not request.query.force:
        raise Rejected(409, "agent has an active run — pass force=true to archive anyway")
    await desk.end(active, "the agent was archived")

    def change(found: entries.Agent) -> entries.Agent:
        return replace(found, archived_at=desk.clock.now_ms(), status="inactive")

    await desk.catalog.change(entries.Agent, entry.id, change)
    await desk.agents.changed(desk.tenant)
    return Answer(None, 204)


async def agent_status(desk: Desk, request: Request) -> Answer:
    """How the agent's conversation `default` stands, as clients of Norns ask it."""
    entry = await desk.agent(decode_id(request.path["id"]))
    session = await desk.session(entry.id, "default")
    row = await desk.current(session)
    if row is None:
        return Answer(shapes.Data(shapes.AgentStanding(agent_id=entry.id, status="stopped")))
    conversation = (await desk.numbers.sessions([session]))[0]
    standing = shapes.AgentStanding(
        agent_id=entry.id,
        status="waiting" if row.status == "waiting" else "running",
        conversation_id=conversation,
        conversation_key="default",
        run_id=await desk.numbers.run(row.id),
        step=(await desk.told(row, brief=True)).timeline.step,
        message_count=(await desk.outline(row)).message_count,
    )
    return Answer(shapes.Data(standing))
