"""Threads for functions that block. They are daemons: a stuck one holds up no exit."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """At most `threads_max` threads, started when there is work and none is free.

    A function that never returns keeps its thread for good; when all are kept, what is submitted
    waits, and `Future.cancel` tells that it never ran.
    """

    def __init__(self, threads_max: int, name: str) -> None:
        self._threads_max = threads_max
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in a thread, in a copy of the caller's context."""
        future: Future[T] = Future()
        context = contextvars.copy_context()
        with self._lock:
            self._free -= 1
            missing = self._free < 0 and self._threads < self._threads_max
            if missing:
                self._threads += 1
                self._free += 1
        self._jobs.put((future, lambda: context.run(function)))
        if missing:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let every thread end after what it is doing; nothing may be submitted any more."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:  # noqa: BLE001  it belongs to whoever waits
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del job, future, function
            with self._lock:
                self._free += 1
