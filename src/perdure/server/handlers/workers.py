"""What is connected: workers, and the tools that agents may use now."""

from __future__ import annotations

from perdure.api import shapes
from perdure.api.definition import BUILTINS
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import part
from perdure.server.members import Member


async def list_tools(desk: Desk, request: Request) -> Answer:
    """The tools outside of gards: built-ins first, then those of connected workers."""
    members = [member for member in desk.pool.members(desk.tenant) if _gard(member) is None]
    found = [
        shapes.Tool(
            name=tool.name,
            description=tool.description,
            input_schema=tool.parameters,
            source="builtin",
        )
        for tool in BUILTINS
    ]
    names = {tool.name for tool in found}
    for member in members:
        for offer in member.registration.tools:
            if offer.name not in names:
                names.add(offer.name)
                found.append(
                    shapes.Tool(
                        name=offer.name,
                        description=offer.description,
                        input_schema=offer.input_schema,
                        source="worker",
                        side_effect=offer.effect_class() != "read",
                    )
                )
    meta = shapes.ToolsMeta(
        workers_connected=len(members),
        workers=tuple(_shown(member) for member in members),
        llm_available=any("llm" in member.registration.capabilities for member in members),
    )
    return Answer(shapes.Tools(data=tuple(found), meta=meta))


async def list_workers(desk: Desk, request: Request) -> Answer:
    """The workers that are connected to this node."""
    workers = [_shown(one) for one in desk.pool.members(desk.tenant)]
    return Answer(part(workers, request.query, lambda one: (one.worker_id,), tuple[str]))


def _shown(member: Member) -> shapes.Worker:
    return shapes.Worker(
        worker_id=member.id,
        capabilities=member.registration.capabilities,
        tool_count=len(member.registration.tools),
        gard=_gard(member),
        draining=member.draining,
    )


def _gard(member: Member) -> int | None:
    gard = member.registration.gard
    return None if gard is None else int(gard)
