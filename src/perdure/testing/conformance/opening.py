"""How a suite gets at the store under test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from perdure.ports.session_store import SessionStore
from perdure.testing.clock import FakeClock

OpenStore = Callable[[FakeClock], AbstractAsyncContextManager[SessionStore]]
"""Opens an empty store that tells the time by the clock it is given, and closes it on leaving."""
