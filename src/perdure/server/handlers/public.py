"""What needs no key: whether the node lives and can serve, and what may be asked of it."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

from perdure.api import shapes
from perdure.api.openapi import document
from perdure.core.errors import PerdureError
from perdure.server.desk import Answer, Request
from perdure.server.reading import page_of
from perdure.server.service import VERSION, Service


async def health(service: Service, request: Request, http: HttpRequest) -> Answer:
    """The process answers: it lives."""
    return Answer(shapes.Health(status="ok"))


async def ready(service: Service, request: Request, http: HttpRequest) -> Answer:
    """The node has its lease and its stores answer: it can serve."""
    checks, durability = {}, service.store.durability
    try:
        service.node.check()
        await service.node.rows(limit=1)
    except PerdureError as error:
        checks["store"] = str(error)
    try:
        await service.catalog.tenants()
    except PerdureError as error:
        checks["catalog"] = str(error)
    if service.leaving.begun:
        checks["node"] = "it is stopping"
    if checks:
        health = shapes.Health(status="unavailable", checks=checks, durability=durability)
        return Answer(health, 503)
    return Answer(shapes.Health(status="ok", durability=durability))


async def openapi(service: Service, request: Request, http: HttpRequest) -> Answer:
    """The document that describes this API."""
    return Answer(document(VERSION))


async def docs(service: Service, request: Request, http: HttpRequest) -> Response:
    """The same, to be read by people."""
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(page_of(document(VERSION)), headers=headers)


async def record_first_run(service: Service, request: Request, http: HttpRequest) -> Answer:
    """Taken, and not kept: nobody is counted here."""
    return Answer(shapes.Status(status="recorded"))
