"""Threads run what blocks, at most so many at once, and hold up nobody."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, wait

import pytest

from perdure.worker.threads import Threads

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_results_errors_and_context() -> None:
    """The caller's context is copied: what the function sets stays inside."""
    threads = Threads(2, "t")
    who.set("me")

    def look() -> str:
        seen = who.get()
        who.set("them")
        return seen

    assert threads.submit(look).result(10) == "me"
    assert who.get() == "me"
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(10)
    threads.close()


def test_no_more_threads_than_allowed_and_no_more_than_needed() -> None:
    """One that is free is used again."""
    threads = Threads(2, "counted threads")
    for _ in range(5):
        threads.submit(lambda: None).result(10)
        # The thread says that it is free after it has said that it is done.
        while threads._free < 1:
            threading.Event().wait(0.001)
    assert threads._threads == 1
    gate = threading.Event()
    jobs = [threads.submit(lambda: gate.wait(20)) for _ in range(5)]
    alive = [each for each in threading.enumerate() if each.name == "counted threads"]
    assert len(alive) == threads._threads == 2
    gate.set()
    assert len(wait(jobs, 10).done) == 5
    threads.close()
    for each in alive:
        each.join(10)
        assert not each.is_alive()


def test_what_has_not_started_can_be_taken_back() -> None:
    """And then never runs."""
    threads = Threads(1, "t")
    gate, ran = threading.Event(), []
    busy = threads.submit(lambda: gate.wait(20))
    waiting = threads.submit(lambda: ran.append(1))
    assert waiting.cancel()
    assert not busy.cancel() or busy.cancelled()
    gate.set()
    threads.submit(lambda: None).result(10)
    assert not ran
    with pytest.raises(CancelledError):
        waiting.result()
    threads.close()


def test_a_stuck_thread_does_not_keep_the_process() -> None:
    """`concurrent.futures` would join it for ever."""
    program = (
        "import threading\n"
        "from perdure.worker.threads import Threads\n"
        "started = threading.Event()\n"
        "def stuck():\n"
        "    started.set()\n"
        "    threading.Event().wait()\n"
        "Threads(1, 't').submit(stuck)\n"
        "started.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 0
