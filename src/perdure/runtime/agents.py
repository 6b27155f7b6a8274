"""Which agents a node serves, how they are defined just now, and what policy is in force."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from perdure.core.agent import Definition, Peers
from perdure.core.gate import NO_RULES, Gate


class Agents(Protocol):
    """The definitions in force. They may change at any time: they are read before every call."""

    are_shared: bool
    """Whether every node has the same ones; else other nodes may have other code."""

    def of(self, tenant: str, agent: str) -> Definition | None:
        """Return how a tenant's agent is defined; None if there is no such agent here."""
        ...

    def gate(self, tenant: str) -> Gate:
        """Return a tenant's policy: it is asked before every call."""
        ...

    def peers(self, tenant: str) -> Peers:
        """Return a tenant's agents, for those among them that launch others."""
        ...

    def names(self, tenant: str) -> Sequence[str]:
        """Return the names of a tenant's agents, in order."""
        ...

    def served(self) -> Collection[str]:
        """Return the names of all tenants' agents: their due sessions are taken up."""
        ...


class Registered:
    """The agents that a program has registered in code: the same for every tenant."""

    are_shared = False

    def __init__(self, definitions: Mapping[str, Definition], gate: Gate = NO_RULES) -> None:
        self._definitions = definitions
        self._peers = Peers(definitions)
        self._gate = gate

    def of(self, tenant: str, agent: str) -> Definition | None:
        """Return the definition of an agent."""
        return self._definitions.get(agent)

    def gate(self, tenant: str) -> Gate:
        """Return the policy."""
        return self._gate

    def peers(self, tenant: str) -> Peers:
        """Return the agents."""
        return self._peers

    def names(self, tenant: str) -> Sequence[str]:
        """Return the names of the agents, in order."""
        return sorted(self._definitions)

    def served(self) -> Collection[str]:
        """Return the names of the agents."""
        return self._definitions.keys()
