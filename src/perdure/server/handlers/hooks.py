"""Hooks: addresses that others post to, each for one agent."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict, replace
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from perdure.api import shapes
from perdure.api.decoding import decode_id
from perdure.api.errors import Rejected
from perdure.api.operations import PREFIX
from perdure.api.shapes import timestamp
from perdure.core.errors import InvalidInput, PerdureError
from perdure.ports import entries
from perdure.server.desk import Answer, Desk, Request
from perdure.server.gards import claim_digest as token_digest
from perdure.server.handlers.lists import listed
from perdure.server.inbound import Challenge, receive
from perdure.server.keys import tenant_is_good
from perdure.server.sending import send
from perdure.server.service import Service
from perdure.server.signatures import BadSignature, check_secret

TOKEN_BYTES = 32


async def list_hooks(desk: Desk, request: Request) -> Answer:
    """Hooks by id."""
    return Answer(await listed(desk, request.query, entries.Hook, _shown))


async def create_hook(desk: Desk, request: Request) -> Answer:
    """Make a hook; its address is told this once."""
    body: shapes.HookCreate = request.body
    try:
        await desk.agent(body.agent_id, archived=False)
    except Rejected:
        raise Rejected(422, {"agent_id": ["does not exist"]}) from None
    _check_secret(body.signature_type, body.signing_secret)
    token = urlsafe_b64encode(desk.fresh(TOKEN_BYTES)).decode().rstrip("=")
    made = await desk.catalog.create(
        entries.Hook(
            agent_id=body.agent_id,
            name=body.name,
            token_digest=token_digest(token),
            message_path=body.message_path,
            conversation_key_path=body.conversation_key_path,
            signature_type=body.signature_type,
            signing_secret=_sealed(desk, body.signing_secret),
            enabled=body.enabled,
        )
    )
    return Answer(shapes.Data(_shown(made, token)), 201)


async def get_hook(desk: Desk, request: Request) -> Answer:
    """One hook."""
    entry = await desk.catalog.get(entries.Hook, decode_id(request.path["id"]))
    if entry is None:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(_shown(entry)))


async def update_hook(desk: Desk, request: Request) -> Answer:
    """Change a hook; its address stays."""
    given = {name: value for name, value in asdict(request.body).items() if value is not UNSET}
    secret = given.get("signing_secret")
    if "signing_secret" in given:
        given["signing_secret"] = _sealed(desk, secret)

    def change(found: entries.Hook) -> entries.Hook:
        wanted = replace(found, **given)
        opened = wanted.signing_secret and desk.seal.unseal(wanted.signing_secret)
        _check_secret(wanted.signature_type, opened or None)
        return wanted

    changed = await desk.catalog.change(entries.Hook, decode_id(request.path["id"]), change)
    if changed is None:
        raise Rejected(404, "not found")
    return Answer(shapes.Data(_shown(changed)))


async def delete_hook(desk: Desk, request: Request) -> Answer:
    """Forget a hook."""
    if not await desk.catalog.delete(entries.Hook, decode_id(request.path["id"])):
        raise Rejected(404, "not found")
    return Answer(None, 204)


async def receive_hook(service: Service, request: Request, http: HttpRequest) -> Answer | Response:
    """Take somebody's webhook: the signature of the raw body is checked before it is read."""
    found = await service.catalog.locate(entries.Hook, token_digest(request.path["id"]))
    if found is None or not found[1].enabled:
        raise Rejected(404, "not found")
    tenant, hook = found
    if not await tenant_is_good(service.catalog, tenant):
        raise Rejected(404, "not found")
    service.admit(tenant)
    desk = service.desk(tenant)
    try:
        secret = desk.seal.unseal(hook.signing_secret) if hook.signing_secret else ""
        wanted = receive(
            hook.id,
            check_secret(hook.signature_type, secret or None),
            secret,
            http.headers.raw,
            request.body,
            desk.clock.now_ms(),
            hook.message_path,
            hook.conversation_key_path,
        )
    except BadSignature as bad:
        raise Rejected(401, bad.reason) from None
    except InvalidInput as error:
        raise Rejected(400, f"Bad Request: {error}") from None
    if isinstance(wanted, Challenge):
        return PlainTextResponse(wanted.text)
    try:
        agent = await desk.agent(hook.agent_id, archived=False)
    except PerdureError:
        raise Rejected(404, "not found") from None
    run = await send(
        desk,
        agent,
        wanted.content,
        key=wanted.session_key,
        idempotency_key=wanted.idempotency_key,
        trigger="webhook",
    )
    return Answer(desk.accepted(await desk.numbers.run(run)), 202)


def _check_secret(scheme: str, secret: str | None) -> None:
    try:
        check_secret(scheme, secret)
    except InvalidInput as error:
        raise Rejected(422, {"signing_secret": [str(error)]}) from None


def _sealed(desk: Desk, secret: str | None) -> str | None:
    return None if secret is None else desk.seal.seal(secret)


def _shown(entry: entries.Hook, token: str | None = None) -> shapes.Hook:
    signature_type: Any = entry.signature_type
    return shapes.Hook(
        id=entry.id,
        agent_id=entry.agent_id,
        name=entry.name,
        token=token,
        path=None if token is None else f"{PREFIX}/hooks/{token}",
        message_path=entry.message_path,
        conversation_key_path=entry.conversation_key_path,
        signature_type=signature_type,
        enabled=entry.enabled,
        inserted_at=timestamp(entry.inserted_at),
        updated_at=timestamp(entry.updated_at),
    )
