"""The loop of virtual time, for many nodes and long runs: in order, and it keeps nothing."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

from perdure.testing.simulation.loop import VirtualLoop

T = TypeVar("T")


class FleetLoop(VirtualLoop):
    """Runs what is ready in the order in which it became so, for as long as it takes."""

    steps_max = 10**12

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._under_way: set[asyncio.Task[Any]] = set()

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task of the current process; it is forgotten when it ends."""
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name)  # type: ignore[arg-type]
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def run_ready(self) -> None:
        """Run what is ready, and what that makes ready; the time stands still."""
        while self._ready:
            batch, self._ready = self._ready, []
            for handle in batch:
                self._run(handle)

    def close(self) -> None:
        """Drop everything that is under way."""
        self.tasks = list(self._under_way)  # type: ignore[arg-type]
        super().close()
