"""The policy of a tenant: the rules by which calls are allowed, denied, or put to people."""

from __future__ import annotations

import msgspec

from perdure.api import shapes
from perdure.api.errors import Rejected
from perdure.api.shapes import timestamp
from perdure.core.errors import InvalidInput
from perdure.policy.policy import Policy
from perdure.ports import entries
from perdure.server.desk import Answer, Desk, Request
from perdure.server.policies import put_policy, remove_policy


async def get_policy(desk: Desk, request: Request) -> Answer:
    """The rules in force."""
    found = await desk.catalog.list(entries.Policy)
    return Answer(shapes.Data(_shown(found[0]) if found else shapes.Policy()))


async def update_policy(desk: Desk, request: Request) -> Answer:
    """Put other rules in force. What is not a policy replaces nothing."""
    try:
        policy = Policy.from_json(msgspec.json.encode(request.body.policy), "the policy")
    except InvalidInput as error:
        raise Rejected(422, {"policy": [str(error)]}) from None
    entry = await put_policy(desk.catalog, policy)
    await desk.agents.changed(desk.tenant)
    return Answer(shapes.Data(_shown(entry)))


async def delete_policy(desk: Desk, request: Request) -> Answer:
    """Have no rules: what agents list and are granted is allowed."""
    if await remove_policy(desk.catalog):
        await desk.agents.changed(desk.tenant)
    return Answer(None, 204)


def _shown(entry: entries.Policy) -> shapes.Policy:
    return shapes.Policy(
        version=entry.version,
        policy=msgspec.json.decode(entry.body, type=dict),
        updated_at=timestamp(entry.updated_at),
    )
