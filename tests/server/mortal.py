"""Services that die: every step they take outside of themselves can be their last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.core.errors import StoreError

WRITES = frozenset({"create", "update", "delete"})


class Died(BaseException):
    """The process is gone: nobody inside of it gets to handle this."""


@contextlib.contextmanager
def dying() -> Iterator[None]:
    """Expect that whoever is inside dies, also where tasks wrap what ended them."""
    died = False
    try:
        yield
    except* Died:
        died = True
    assert died


class Life:
    """Counts the moments before and after each step, and ends at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        self.moments = 0

    async def step(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Take a step, and live or not."""
        self._pass()
        done = await call()
        self._pass()
        return done

    def _pass(self) -> None:
        self.moments += 1
        if self.moments == self.dies_at:
            raise Died


class Catalogs:
    """One node's view of a shared catalog: whatever it asks, others get their turn first."""

    def __init__(self, shared: MemoryCatalog, life: Life | None = None) -> None:
        self._shared = shared
        self._life = life or Life()
        self.before_update: list[Callable[[], Awaitable[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **named: Any) -> Any:
            await asyncio.sleep(0)
            if name == "update" and self.before_update:
                await self.before_update.pop(0)()
            made = lambda: getattr(self._shared, name)(*args, **named)  # noqa: E731
            return await (self._life.step(made) if name in WRITES else made())

        return call


class Notes:
    """Telemetry that can be read."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def emit(self, name: str, **fields: Any) -> None:
        """Write one down."""
        self.said.append((name, fields))

    @property
    def names(self) -> list[str]:
        """What was said, without the details."""
        return [name for name, _ in self.said]


def unreadable_for(tenant: str, catalog: MemoryCatalog) -> None:
    """Have a tenant's entries be of a version that nobody can read."""
    real = catalog.list

    async def find(asked: str, kind: Any, **query: Any) -> Any:
        if asked == tenant:
            raise StoreError("the entry on record cannot be read: another version wrote it")
        return await real(asked, kind, **query)

    catalog.list = find  # type: ignore[method-assign]
