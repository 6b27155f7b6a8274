"""Endpoints: addresses of a tenant's own that are told about its runs."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict, replace

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.api.limits import ENDPOINTS_MAX, PAGE_ITEMS
from perdure.api.shapes import timestamp
from perdure.ports import entries
from perdure.server.desk import UNENDED, Answer, Desk, Request
from perdure.server.egress import EgressDenied
from perdure.server.handlers.lists import asked, listed
from perdure.server.outbox import enabled
from perdure.server.signatures import new_secret

SECRET_BYTES = 32
TEST_EVENT = "endpoint.test"


async def list_endpoints(desk: Desk, request: Request) -> Answer:
    """Endpoints by id."""

    def show(entry: entries.Endpoint) -> shapes.Endpoint:
        return shapes.Endpoint(**_fields(entry))

    return Answer(await listed(desk, request.query, entries.Endpoint, show))


async def create_endpoint(desk: Desk, request: Request) -> Answer:
    """Make an endpoint: it is told about what happens from now on."""
    body: shapes.EndpointCreate = request.body
    _check_url(desk, body.url)
    await _check_agent(desk, body.agent_id)
    if len(await desk.catalog.list(entries.Endpoint, limit=ENDPOINTS_MAX)) == ENDPOINTS_MAX:
        raise Rejected(409, f"there are {ENDPOINTS_MAX} endpoints already: delete one first")
    is_first = not await desk.webhooks.surely_listens(desk.tenant)
    if is_first:
        # Before there is an endpoint: no run that is in progress may end untold.
        desk.webhooks.listen(desk.tenant)
        await desk.webhooks.expect_all(desk.tenant, await desk.rows(statuses=UNENDED))
    secret = new_secret(desk.fresh(SECRET_BYTES))
    made = await desk.catalog.create(
        entries.Endpoint(
            name=body.name,
            url=body.url,
            signing_secrets=(desk.seal.seal(secret),),
            events=tuple(dict.fromkeys(body.events)),
            agent_id=body.agent_id,
            enabled=body.enabled,
        )
    )
    desk.webhooks.listen(desk.tenant)  # the last other one may have been deleted meanwhile
    await desk.changes.tell("endpoints", desk.tenant)
    if is_first:
        # Others begin runs of this tenant, and expect nobody to be told, until they have looked.
        await desk.changes.known()
    return Answer(shapes.Data(shapes.EndpointMade(**_fields(made), signing_secret=secret)), 201)


async def get_endpoint(desk: Desk, request: Request) -> Answer:
    """One endpoint."""
    return Answer(shapes.Data(shapes.Endpoint(**_fields(await _endpoint(desk, request)))))


async def update_endpoint(desk: Desk, request: Request) -> Answer:
    """Change an endpoint; enabled again, it is asked at once."""
    given = {name: value for name, value in asdict(request.body).items() if value is not UNSET}
    if "url" in given:
        _check_url(desk, given["url"])
    await _check_agent(desk, given.get("agent_id"))

    def change(found: entries.Endpoint) -> entries.Endpoint:
        wanted = replace(found, **given)
        return enabled(wanted) if given.get("enabled") else wanted

    number = decode_id(request.path["id"])
    changed = await desk.catalog.change(entries.Endpoint, number, change)
    if changed is None:
        raise Rejected(404, "not found")
    desk.webhooks.outbox.begin(desk.tenant, changed.id)
    return Answer(shapes.Data(shapes.Endpoint(**_fields(changed))))


async def delete_endpoint(desk: Desk, request: Request) -> Answer:
    """Forget an endpoint and what it is owed."""
    number = decode_id(request.path["id"])
    if not await desk.catalog.delete(entries.Endpoint, number):
        raise Rejected(404, "not found")
    await desk.webhooks.load(desk.tenant)
    await desk.changes.tell("endpoints", desk.tenant)
    await desk.webhooks.outbox.drop(desk.tenant, number)
    return Answer(None, 204)


async def rotate_endpoint(desk: Desk, request: Request) -> Answer:
    """Sign with two secrets from now on: a new one, and the newest of those before."""
    secret = new_secret(desk.fresh(SECRET_BYTES))
    sealed = desk.seal.seal(secret)

    def change(found: entries.Endpoint) -> entries.Endpoint:
        return replace(found, signing_secrets=(sealed, *found.signing_secrets[:1]))

    number = decode_id(request.path["id"])
    changed = await desk.catalog.change(entries.Endpoint, number, change)
    if changed is None:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(shapes.EndpointMade(**_fields(changed), signing_secret=secret)), 201)


async def test_endpoint(desk: Desk, request: Request) -> Answer:
    """Owe an endpoint an event of no run, whatever it wants to be told."""
    entry = await _endpoint(desk, request)
    if not entry.enabled:
        raise Rejected(409, "the endpoint is not enabled: enable it first")
    event_id, now = f"{TEST_EVENT}/{desk.clock.fresh_id()}", desk.clock.now_ms()
    about = {"endpoint_id": entry.id, "name": entry.name}
    owed = await desk.webhooks.outbox.owe(desk.tenant, entry, event_id, TEST_EVENT, about, now)
    assert owed is not None, "its id is a fresh one"
    return Answer(shapes.Data(_delivery(owed)), 202)


async def list_deliveries(desk: Desk, request: Request) -> Answer:
    """An endpoint's deliveries, the newest first, never more than a page."""
    entry = await _endpoint(desk, request)
    query = request.query if asked(request.query) else replace(request.query, limit=PAGE_ITEMS)
    page = await listed(
        desk, query, entries.Delivery, _delivery, of=entry.id, newest=True, archived=True
    )
    return Answer(page)


async def retry_delivery(desk: Desk, request: Request) -> Answer:
    """Owe a delivery again, from its first attempt; one that is still owed stays as it is."""
    number = decode_id(request.path["id"])
    renewed = await desk.webhooks.outbox.retry(desk.tenant, number)
    if renewed is None:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(_delivery(renewed)), 202)


async def _endpoint(desk: Desk, request: Request) -> entries.Endpoint:
    entry = await desk.catalog.get(entries.Endpoint, decode_id(request.path["id"]))
    if entry is None:
        raise Rejected(404, "not found")
    return entry


def _check_url(desk: Desk, url: str) -> None:
    try:
        desk.webhooks.egress.check(url)
    except EgressDenied as denied:
        raise Rejected(422, {"url": [str(denied)]}) from None


async def _check_agent(desk: Desk, agent: int | None) -> None:
    if agent is not None and await desk.catalog.get(entries.Agent, agent) is None:
        raise Rejected(422, {"agent_id": ["does not exist"]})


def _fields(entry: entries.Endpoint) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "url": entry.url,
        "events": entry.events,
        "agent_id": entry.agent_id,
        "enabled": entry.enabled,
        "disabled_because": entry.disabled_because,
        "failures": entry.failures,
        "inserted_at": timestamp(entry.inserted_at),
        "updated_at": timestamp(entry.updated_at),
    }


def _delivery(entry: entries.Delivery) -> shapes.Delivery:
    return shapes.Delivery(
        id=entry.id,
        endpoint_id=entry.endpoint_id,
        webhook_id=entry.message_id,
        event=entry.event,
        status=entry.status,
        attempts=entry.attempts,
        next_at=timestamp(entry.next_at) if entry.status == "pending" else None,
        last_error=entry.last_error,
        inserted_at=timestamp(entry.inserted_at),
        updated_at=timestamp(entry.updated_at),
    )
