"""An event loop of virtual time: a seed chooses what runs next, and the clock jumps to the timers.

Everything of a run, all nodes and the world around them, is on one loop in one thread. A callback
belongs to the `Process` during which it was scheduled. A process that is dead drops its callbacks,
one that is paused keeps them until it goes on: that is what SIGKILL and SIGSTOP do.

Of asyncio's promises these are kept: a callback runs alone, never inside `call_soon`; timers never
come early; nothing is lost. One is dropped on purpose: among the callbacks that are ready the seed
draws the next one, where asyncio keeps the order of `call_soon`. Tasks that became ready at one
instant have no order that a program may build on. Whoever does promise an order, as a store does
for the commits of a session, keeps it himself (see `store`).
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple, Unpack, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
STEPS_MAX = 60_000
"""A run with more callbacks than this is going round in circles."""


class Died(BaseException):
    """The process dies here: raised at a fault point, and caught by nobody."""


class Livelock(Exception):
    """The loop made `STEPS_MAX` steps and came to no end."""


class Process:
    """Whose callback it is: a life of a node, or the world."""

    __slots__ = ("dead", "frozen", "name", "paused")

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.paused = False
        self.frozen: list[Handle] = []


class Handle:
    """A callback to come."""

    __slots__ = ("args", "callback", "context", "done", "process", "when_us")

    def __init__(
        self,
        process: Process,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        when_us: int = 0,
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.when_us = when_us
        self.done = False

    def cancel(self) -> None:
        """Drop the callback."""
        self.done = True

    def cancelled(self) -> bool:
        """Say whether it was dropped, or ran."""
        return self.done

    def when(self) -> float:
        """Return the time at which it runs, in seconds of the loop."""
        return self.when_us / 1e6


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualLoop:
    """Runs callbacks in the order that `chance` draws, over time that jumps.

    It has of asyncio's loop what tasks, futures and timers ask for: no files, sockets, threads,
    processes or signals. Whatever asks for one of those fails at once.
    """

    steps_max = STEPS_MAX

    def __init__(self, chance: random.Random) -> None:
        self.world = Process("the world")
        self.current = self.world
        self.now_us = 0
        self.steps = 0
        self.tasks: list[_Task] = []
        self.troubles: list[str] = []
        self._draw = chance.random
        self._ready: list[Handle] = []
        self._timers: list[tuple[int, int, Handle]] = []
        self._number = 0
        self._closed = False

    # ----------------------------------------------------------------- what asyncio asks of a loop

    def time(self) -> float:
        """Return the virtual time in seconds since the run began."""
        return self.now_us / 1e6

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Handle:
        """Run a callback of the current process soon."""
        handle = Handle(self.current, callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Handle:
        """Run a callback of the current process after `delay` seconds."""
        return self.schedule(self.current, self.now_us + int(delay * 1e6), callback, *args)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Handle:
        """Run a callback of the current process at a time of the loop."""
        return self.schedule(self.current, int(when * 1e6), callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a new future."""
        return asyncio.Future(loop=cast(Any, self))

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task of the current process."""
        task = _Task.__new__(_Task)
        self._number += 1
        task.number = self._number
        task.__init__(coro, loop=self, name=name or "")  # type: ignore[misc]
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        """Nothing is debugged."""
        return False

    def is_running(self) -> bool:
        """It runs whenever anybody can ask."""
        return True

    def is_closed(self) -> bool:
        """Say whether the run is over."""
        return self._closed

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody handled: an oracle asks for it."""
        error = context.get("exception")
        if not self._closed and not isinstance(error, Died):
            self.troubles.append(f"{context.get('message')}: {error!r}")

    call_exception_handler = default_exception_handler

    # ------------------------------------------------------------------- what the world asks of it

    def schedule(
        self, process: Process, when_us: int, callback: Callable[..., Any], *args: Any
    ) -> Handle:
        """Run a callback of a process at a virtual time, in microseconds."""
        handle = Handle(process, callback, args, None, when_us)
        if when_us <= self.now_us:
            self._ready.append(handle)
        else:
            self._number += 1
            heapq.heappush(self._timers, (when_us, self._number, handle))
        return handle

    def spawn(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine as a task of a process."""
        before, self.current = self.current, process
        try:
            return self.create_task(work)
        finally:
            self.current = before

    def at_once(self, callback: Callable[..., object], *args: Any) -> None:
        """Call something on behalf of the world, with everything that it puts off until soon.

        What it sets off in other processes takes its turn like anything else.
        """
        ready, process = self._ready, self.current
        place, self.current = len(ready), self.world
        try:
            callback(*args)
            while place < len(ready):
                if ready[place].process is self.world:
                    self._run(ready.pop(place))
                    self.current = self.world
                else:
                    place += 1
        finally:
            self.current = process

    def resume(self, process: Process) -> None:
        """Let a paused process go on with everything it missed."""
        process.paused = False
        self._ready += process.frozen
        process.frozen = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be the running loop of this thread until the block is left."""
        asyncio._set_running_loop(cast(Any, self))
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def run(self, until: Callable[[], bool]) -> None:
        """Run until `until` says so, which is asked at every jump of the time; or nothing is left.

        Raises `Livelock`.
        """
        with self.inside():
            while True:
                self.run_ready()
                if until() or not self._timers:
                    return
                self._jump()

    def close(self) -> None:
        """Drop everything; what is half done is never finished, and says nothing."""
        self._closed = True
        with self.inside():
            for task in self.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    task.get_coro().close()
        self._ready, self._timers, self.tasks = [], [], []

    def _jump(self) -> None:
        timers = self._timers
        self.now_us = max(self.now_us, timers[0][0])
        while timers and timers[0][0] <= self.now_us:
            self._ready.append(heapq.heappop(timers)[2])

    def run_ready(self) -> None:
        """Run what is ready, in the order that the seed draws; the time stands still."""
        ready, draw = self._ready, self._draw
        while ready:
            last = len(ready) - 1
            if last:
                place = int(draw() * (last + 1))
                ready[place], ready[last] = ready[last], ready[place]
            self._run(ready.pop())

    def _run(self, handle: Handle) -> None:
        process = handle.process
        if handle.done or process.dead:
            return
        if process.paused:
            process.frozen.append(handle)
            return
        handle.done = True
        self.current = process
        self.steps += 1
        try:
            if handle.context is None:
                handle.callback(*handle.args)
            else:
                handle.context.run(handle.callback, *handle.args)
        except Died:
            pass
        except Exception as error:  # noqa: BLE001  the world is told, and the run fails
            self.troubles.append(f"a callback of {process.name} raised {error!r}")
        self.current = self.world
        if self.steps > self.steps_max:
            raise Livelock(f"{self.steps_max} steps by {self.now_us / 1e6:.1f} s")
