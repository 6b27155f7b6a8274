"""What the operations do, one module for each noun.

`HANDLERS` has every operation that needs a key, under its id in `perdure.api.operations`; `PUBLIC`
has those that need none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from perdure.api.operations import OPERATIONS
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers import (
    agents,
    endpoints,
    gards,
    hooks,
    keys,
    nodes,
    policies,
    public,
    runs,
    sessions,
    standing,
    triggers,
    usage,
    workers,
)
from perdure.server.service import Service

Handler = Callable[[Desk, Request], Awaitable[Answer]]
PublicHandler = Callable[[Service, Request, HttpRequest], Awaitable[Answer | Response]]

MODULES: tuple[ModuleType, ...] = (
    agents,
    runs,
    sessions,
    workers,
    usage,
    triggers,
    gards,
    hooks,
    endpoints,
    keys,
    nodes,
    policies,
    standing,
    public,
)
_FOUND = {
    name: thing for module in MODULES for name, thing in vars(module).items() if callable(thing)
}

HANDLERS: Mapping[str, Handler] = {
    operation.id: _FOUND[operation.id] for operation in OPERATIONS if operation.scope is not None
}
PUBLIC: Mapping[str, PublicHandler] = {
    operation.id: _FOUND[operation.id] for operation in OPERATIONS if operation.scope is None
}
