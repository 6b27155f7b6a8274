"""API keys: made, listed, rotated, revoked. A key's text is told once."""

from __future__ import annotations

from typing import Any

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.api.shapes import timestamp, timestamp_or_none
from perdure.core.errors import InvalidInput
from perdure.ports import entries
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import listed
from perdure.server.keys import Issued

GRACE_MS = 24 * 3600 * 1000
"""How long a key that was rotated stays good beside its successor."""


async def list_keys(desk: Desk, request: Request) -> Answer:
    """All keys, revoked ones too."""

    def show(entry: entries.Key) -> shapes.Key:
        return shapes.Key(**_fields(entry))

    return Answer(await listed(desk, request.query, entries.Key, show, archived=True))


async def create_key(desk: Desk, request: Request) -> Answer:
    """Make a key."""
    body: shapes.KeyCreate = request.body
    life_s = body.expires_in_s
    if body.gard_id is not None:
        gard = await desk.catalog.get(entries.Gard, body.gard_id)
        if gard is None or gard.status == "destroyed":
            raise Rejected(422, {"gard_id": ["does not exist"]})
    try:
        issued = await desk.keys.issue(
            desk.catalog,
            body.scope,
            name=body.name,
            gard=body.gard_id,
            capabilities=body.capabilities,
            expires_at=None if life_s is None else desk.clock.now_ms() + life_s * 1000,
            roles=body.roles,
        )
    except InvalidInput as error:
        raise Rejected(422, {"scope": [str(error)]}) from None
    return _made(issued)


async def rotate_key(desk: Desk, request: Request) -> Answer:
    """Make the successor of a key; both are good for a day."""
    number = decode_id(request.path["id"])
    issued = await desk.keys.rotate(desk.catalog, number, desk.clock.now_ms(), GRACE_MS)
    if issued is None:
        raise Rejected(404, "not found")
    return _made(issued)


async def revoke_key(desk: Desk, request: Request) -> Answer:
    """End a key: what was opened with it is closed."""
    number = decode_id(request.path["id"])
    if not await desk.keys.revoke(desk.catalog, number, desk.clock.now_ms()):
        raise Rejected(404, "not found")
    return Answer(None, 204)


def _made(issued: Issued) -> Answer:
    return Answer(shapes.Data(shapes.KeyMade(**_fields(issued.key), key=issued.token)), 201)


def _fields(entry: entries.Key) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name or None,
        "scope": entry.scope,
        "gard_id": entry.gard,
        "capabilities": entry.capabilities if entry.scope == "worker" else (),
        "roles": entry.roles,
        "expires_at": timestamp_or_none(entry.expires_at),
        "last_used_at": timestamp_or_none(entry.last_used_at),
        "revoked_at": timestamp_or_none(entry.archived_at),
        "inserted_at": timestamp(entry.inserted_at),
    }
