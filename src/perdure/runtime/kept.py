"""What sessions name by its content address, and the store keeps once: definitions and policies."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.core.agent import Definition
from perdure.core.gate import Gate

Blobs = tuple[tuple[str, bytes], ...]


class Kept:
    """Which of them the store has, as far as this node knows; others go with the next commit."""

    def __init__(self) -> None:
        self._addresses: set[str] = set()

    def missing(self, agent: Definition, gate: Gate) -> Blobs:
        """Return what a commit under this definition and this policy has to bring along."""
        named = dict(agent.blobs)
        if gate.version:
            named[gate.version] = gate.body
        return tuple(one for one in named.items() if one[0] not in self._addresses)

    def add(self, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Note what a commit brought that is durable."""
        self._addresses.update(address for address, _ in blobs)
