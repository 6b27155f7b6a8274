"""Gards and their ports."""

from __future__ import annotations

from base64 import urlsafe_b64encode

from msgspec import UNSET
from msgspec.structs import asdict, replace

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.ports import entries
from perdure.server import showing
from perdure.server.desk import GARD_DESTROYED, Answer, Desk, Request
from perdure.server.gards import TOKEN_BYTES, claim_digest
from perdure.server.handlers.lists import listed, part
from perdure.wire.table import GardDestroyed


async def list_gards(desk: Desk, request: Request) -> Answer:
    """All gards, destroyed ones too."""

    def show(entry: entries.Gard) -> shapes.Gard:
        return shapes.Gard(**showing.gard(entry))

    return Answer(await listed(desk, request.query, entries.Gard, show, archived=True))


async def create_gard(desk: Desk, request: Request) -> Answer:
    """Make a gard; its claim token is told this once."""
    body: shapes.GardCreate = request.body
    token = urlsafe_b64encode(desk.fresh(TOKEN_BYTES)).decode().rstrip("=")
    made = await desk.catalog.create(
        entries.Gard(
            name=body.name,
            template=body.template,
            metadata=body.metadata or {},
            claim_digest=claim_digest(token),
        )
    )
    return Answer(shapes.Data(shapes.GardMade(**showing.gard(made), claim_token=token)), 201)


async def get_gard(desk: Desk, request: Request) -> Answer:
    """One gard with its ports."""
    entry = await _gard(desk, request)
    ports = [showing.port(port) for port in await desk.catalog.list(entries.Port, of=entry.id)]
    return Answer(shapes.Data(shapes.GardWhole(**showing.gard(entry), ports=tuple(ports))))


async def update_gard(desk: Desk, request: Request) -> Answer:
    """Change a gard's name, template or metadata."""
    given = {name: value for name, value in asdict(request.body).items() if value is not UNSET}
    if "metadata" in given and given["metadata"] is None:
        given["metadata"] = {}
    gard = decode_id(request.path["id"])
    changed = await desk.catalog.change(entries.Gard, gard, lambda found: replace(found, **given))
    if changed is None:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(shapes.Gard(**showing.gard(changed))))


async def destroy_gard(desk: Desk, request: Request) -> Answer:
    """End a gard for good: its worker is told, its ports are gone."""
    entry = await _gard(desk, request)
    if entry.status == "destroyed":
        raise Rejected(404, "not found")
    active = await desk.runs_in(entry.id)
    if active and not request.query.force:
        raise Rejected(409, "gard has an active run — pass force=true to destroy anyway")

    def destroyed(found: entries.Gard) -> entries.Gard:
        now = desk.clock.now_ms()
        return replace(found, status="destroyed", archived_at=now, worker_id=None, node=None)

    await desk.catalog.change(entries.Gard, entry.id, destroyed)
    for port in await desk.catalog.list(entries.Port, of=entry.id):
        await desk.catalog.delete(entries.Port, port.id)
    for member in desk.pool.members(desk.tenant):
        if member.registration.gard == str(entry.id):
            desk.pool.dismiss(member, GardDestroyed())
    await desk.changes.tell("gards", desk.tenant)
    await desk.end(await desk.runs_in(entry.id), GARD_DESTROYED)
    return Answer(None, 204)


async def list_ports(desk: Desk, request: Request) -> Answer:
    """A gard's ports."""
    entry = await _gard(desk, request)
    ports = [showing.port(port) for port in await desk.catalog.list(entries.Port, of=entry.id)]
    where = lambda port: (port.internal_port, port.id)  # noqa: E731
    return Answer(part(ports, request.query, where, tuple[int, int]))


async def _gard(desk: Desk, request: Request) -> entries.Gard:
    entry = await desk.catalog.get(entries.Gard, decode_id(request.path["id"]))
    if entry is None:
        raise Rejected(404, "not found")
    return entry
