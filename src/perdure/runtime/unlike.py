"""Sessions whose open calls need code that this node does not have: others may have it.

While a new version is rolled out, nodes with other tools run side by side. A call that was made for
what this node lacks is not given up at once: its session is left alone for a while, to be taken by
a node that has it. Where there is no other node, nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

from perdure.core.agent import Definition
from perdure.core.ids import SessionId
from perdure.core.state import State
from perdure.ports.clock import Clock
from perdure.ports.telemetry import Telemetry

LEFT_MS = 60_000
"""How long a session is left to others before its calls are given up here."""
REMEMBERED_MAX = 10_000


class Unlike:
    """Remembers which sessions were left. `peers` returns how many nodes there are, ours too."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._until_ms: dict[SessionId, int] = {}
        self.peers: Callable[[], int] = lambda: 1

    def is_left(self, session: SessionId) -> bool:
        """Say whether a session is still left to others."""
        return self._until_ms.get(session, 0) > self._clock.monotonic_ms()

    def count(self) -> int:
        """Return how many sessions are left to others now."""
        now_ms = self._clock.monotonic_ms()
        return sum(until_ms > now_ms for until_ms in self._until_ms.values())

    def lacks(self, session: SessionId, state: State, agent: Definition) -> list[str]:
        """Return what a session that was read lacks here, if it is to be left for that."""
        was_left = self._until_ms.pop(session, None) is not None
        return [] if was_left or self.peers() < 2 else lacking(state, agent)

    def leave(self, session: SessionId, lacks: list[str]) -> None:
        """Leave a session to others, and tell what it lacks here."""
        while len(self._until_ms) >= REMEMBERED_MAX:
            del self._until_ms[next(iter(self._until_ms))]
        self._until_ms[session] = self._clock.monotonic_ms() + LEFT_MS
        self._telemetry.emit("session.unlike", session=str(session), lacks="; ".join(lacks))


def lacking(state: State, agent: Definition) -> list[str]:
    """Return what the open calls of a session need and its agent here does not have."""
    found = []
    for call in state.calls.values():
        if call.kind != "tool":
            continue
        tool = agent.tools_by_name.get(call.name)
        if tool is None:
            found.append(f"tool {call.name!r} is missing")
        elif tool.version != call.version:
            found.append(
                f"tool {call.name!r} has version {tool.version!r}, and a call was made for version "
                f"{call.version!r}"
            )
    return found
