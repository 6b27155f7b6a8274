"""Triggers: messages at times that cron expressions name."""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import asdict, replace

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.ports import entries
from perdure.server import showing
from perdure.server.cron import Cron, InvalidCron
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import listed
from perdure.server.sending import send


async def list_triggers(desk: Desk, request: Request) -> Answer:
    """Triggers by id, of one agent if asked so."""
    agent = None if request.query.agent_id is UNSET else request.query.agent_id
    return Answer(await listed(desk, request.query, entries.Trigger, showing.trigger, of=agent))


async def create_trigger(desk: Desk, request: Request) -> Answer:
    """Make a trigger."""
    body: shapes.TriggerCreate = request.body
    await _check_agent(desk, body.agent_id)
    _check_cron(body.cron, body.time_zone)
    made = await desk.catalog.create(
        entries.Trigger(
            agent_id=body.agent_id,
            name=body.name,
            cron=body.cron,
            message=body.message,
            timezone=body.time_zone,
            catch_up="once" if body.catch_up else "skip",
            conversation_key=body.conversation_key,
            enabled=body.enabled,
        )
    )
    return Answer(shapes.Data(showing.trigger(made)), 201)


async def get_trigger(desk: Desk, request: Request) -> Answer:
    """One trigger."""
    return Answer(shapes.Data(showing.trigger(await _trigger(desk, request))))


async def update_trigger(desk: Desk, request: Request) -> Answer:
    """Change a trigger."""
    given = {name: value for name, value in asdict(request.body).items() if value is not UNSET}
    if "time_zone" in given:
        given["timezone"] = given.pop("time_zone")
    if "catch_up" in given:
        given["catch_up"] = "once" if given["catch_up"] else "skip"

    def change(found: entries.Trigger) -> entries.Trigger:
        wanted = replace(found, **given)
        _check_cron(wanted.cron, wanted.timezone)
        return wanted

    number = decode_id(request.path["id"])
    changed = await desk.catalog.change(entries.Trigger, number, change)
    if changed is None:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(showing.trigger(changed)))


async def delete_trigger(desk: Desk, request: Request) -> Answer:
    """Forget a trigger."""
    if not await desk.catalog.delete(entries.Trigger, decode_id(request.path["id"])):
        raise Rejected(404, "not found")
    return Answer(None, 204)


async def fire_trigger(desk: Desk, request: Request) -> Answer:
    """Send a trigger's message now; its times stay what they are."""
    entry = await _trigger(desk, request)
    agent = await desk.agent(entry.agent_id, archived=False)
    run = await send(
        desk,
        agent,
        entry.message,
        key=entry.conversation_key,
        idempotency_key=request.key,
        trigger="schedule",
    )
    return Answer(desk.accepted(await desk.numbers.run(run)), 202)


async def _trigger(desk: Desk, request: Request) -> entries.Trigger:
    entry = await desk.catalog.get(entries.Trigger, decode_id(request.path["id"]))
    if entry is None:
        raise Rejected(404, "not found")
    return entry


async def _check_agent(desk: Desk, agent: int) -> None:
    try:
        await desk.agent(agent, archived=False)
    except Rejected:
        raise Rejected(422, {"agent_id": ["does not exist"]}) from None


def _check_cron(expression: str, zone: str) -> None:
    try:
        Cron(expression, zone)
    except InvalidCron as error:
        field = "time_zone" if error.field == "time zone" else "cron"
        raise Rejected(422, {field: [str(error)]}) from None
