"""A typed client of a server's REST API: `AsyncClient` and, without an event loop, `Client`."""

from __future__ import annotations

from perdure.client.aio import AsyncClient, AsyncRunHandle
from perdure.client.errors import ApiError, RunWaits, Unreachable
from perdure.client.following import TextDelta
from perdure.client.sync import Client, RunHandle

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncRunHandle",
    "Client",
    "RunHandle",
    "RunWaits",
    "TextDelta",
    "Unreachable",
]
