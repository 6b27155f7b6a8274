"""The agents of all tenants, as their entries in the catalog define them just now.

Definitions are kept in memory, because they are read before every call; whoever changes an entry
says so with `changed`, to this server and to all that share the catalog. An agent's tools are those
that workers registered last. They stay known while no worker is connected, so that a call that
waits for one is not taken for a mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from perdure.api.definition import agent_spec, shown_prompt
from perdure.core.agent import NO_PEERS, AgentSpec, Definition, Peers, ToolSpec, define
from perdure.core.errors import InvalidInput
from perdure.core.gate import NO_RULES, Gate
from perdure.core.template import read_template
from perdure.ports.catalog import Catalog, TenantCatalog
from perdure.ports.entries import Agent, Policy, StandingApproval, ToolRecord
from perdure.ports.telemetry import Telemetry
from perdure.server.changes import Changes
from perdure.server.policies import gate_of, with_standing

OWN_CONFIG = "perdure"
"""Under this name in `model_config` a worker of ours keeps an agent's definition as it is."""


class Catalogued:
    """The definitions in force. A session's agent is the id of its entry, which never changes.

    An agent whose definition this version cannot read in full is not served here: its sessions are
    left to nodes that can. `unreadable` says why.
    """

    are_shared = True

    def __init__(self, catalog: Catalog, changes: Changes, telemetry: Telemetry) -> None:
        self._catalog = catalog
        self._changes = changes
        self._telemetry = telemetry
        self.unreadable: dict[tuple[str, str], str] = {}
        self._begun = 0
        self._read: dict[str, int] = {}
        self._definitions: dict[str, dict[str, Definition]] = {}
        self._peers: dict[str, Peers] = {}
        self._entries: dict[tuple[str, str], Agent] = {}
        self._tools: dict[str, list[ToolRecord]] = {}
        self._gates: dict[str, Gate] = {}
        self._bare: dict[str, Gate] = {}

    def of(self, tenant: str, agent: str) -> Definition | None:
        """Return how an agent is defined; archived ones go on with what they have begun."""
        return self._definitions.get(tenant, {}).get(agent)

    def gate(self, tenant: str) -> Gate:
        """Return a tenant's policy, with what was approved ahead.

        A server that may not know yet what was revoked goes by the policy alone.
        """
        return (self._gates if self._changes.is_current() else self._bare).get(tenant, NO_RULES)

    def policy(self, tenant: str) -> Gate:
        """Return a tenant's policy alone."""
        return self._bare.get(tenant, NO_RULES)

    def names(self, tenant: str) -> Sequence[str]:
        """Return the ids of a tenant's agents, in order."""
        return sorted(self._definitions.get(tenant, {}), key=int)

    def peers(self, tenant: str) -> Peers:
        """Return a tenant's agents by their ids; archived ones are launched no more."""
        return self._peers.get(tenant, NO_PEERS)

    def served(self) -> Collection[str]:
        """Return the ids of all agents."""
        return {agent for agents in self._definitions.values() for agent in agents}

    def entry(self, tenant: str, agent: str) -> Agent | None:
        """Return the entry of an agent, as of the last refresh."""
        return self._entries.get((tenant, agent))

    def is_native(self, tenant: str, agent: str) -> bool:
        """Say whether an agent was defined by a worker of ours, which serves it by name."""
        entry = self.entry(tenant, agent)
        return entry is not None and OWN_CONFIG in entry.model_config

    def offered(self, tenant: str, agent: str, gard: int | None) -> Sequence[ToolSpec]:
        """Return the tools that a run in this gard, or in none, is offered.

        The tools of Norns' workers belong to the agents of all gards; a run sees those of its own.
        """
        definition, entry = self.of(tenant, agent), self.entry(tenant, agent)
        if definition is None or entry is None:
            return ()
        if self.is_native(tenant, agent):
            return definition.spec.tools
        tools = self._tools.get(tenant, ())
        elsewhere = {tool.name for tool in tools} - {t.name for t in tools if t.gard == gard}
        return [tool for tool in definition.spec.tools if tool.name not in elsewhere]

    async def changed(self, tenant: str) -> None:
        """Read what was just changed here, and have other servers read it."""
        await self.refresh(tenant)
        await self._changes.tell("agents", tenant)

    async def meet(self, tenant: str, agent: Agent) -> None:
        """Read a tenant's agents again if one that was just read is newer than what is known."""
        known = self.entry(tenant, str(agent.id))
        if known is None or known.revision < agent.revision:
            await self.refresh(tenant)

    async def refresh(self, tenant: str) -> None:
        """Read a tenant's agents and tools again."""
        self._begun = begun = self._begun + 1
        catalog = TenantCatalog(self._catalog, tenant)
        tools, agents = await catalog.list(ToolRecord), await catalog.list(Agent, archived=True)
        policies, ahead = await catalog.list(Policy), await catalog.list(StandingApproval)
        if self._read.get(tenant, 0) > begun:
            return  # who began later, and was sooner, has read something newer
        self._read[tenant] = begun
        self._tools[tenant] = tools
        bare = self._bare[tenant] = gate_of(policies[0]) if policies else NO_RULES
        self._gates[tenant] = with_standing(bare, ahead)
        in_order = sorted(tools, key=lambda tool: tool.gard or 0)
        self._entries.update({(tenant, str(agent.id)): agent for agent in agents})
        defined = {str(agent.id): self._define(tenant, agent, in_order) for agent in agents}
        known = {name: one for name, one in defined.items() if one is not None}
        gone = {str(agent.id) for agent in agents if agent.archived_at is not None}
        self._definitions[tenant] = known
        self._peers[tenant] = Peers(known, frozenset(gone))

    def _define(self, tenant: str, agent: Agent, tools: Sequence[ToolRecord]) -> Definition | None:
        """Return the definition that an entry makes; None, with a word, if it is not understood."""
        name = (tenant, str(agent.id))
        try:
            found = define(_spec_of(agent, tools))
        except InvalidInput as error:
            if self.unreadable.get(name) != str(error):
                self._telemetry.emit(
                    "agent.unreadable", tenant=tenant, agent=name[1], error=str(error)
                )
            self.unreadable[name] = str(error)
            return None
        self.unreadable.pop(name, None)
        return found

    async def learn(self, tenant: str, tools: Sequence[ToolRecord]) -> None:
        """Keep the tools that a worker registers; return when agents have them."""
        catalog = TenantCatalog(self._catalog, tenant)
        known = {tool.unique: tool for tool in self._tools.get(tenant, ())}
        new = [tool for tool in tools if _differs(known.get(tool.unique), tool)]
        for tool in new:
            await catalog.put(tool)
        if new:
            await self.changed(tenant)


def _spec_of(agent: Agent, tools: Sequence[ToolRecord]) -> AgentSpec:
    """Return what an agent's entry and the known tools make of it.

    A worker of ours keeps its agents' exact definitions in `OWN_CONFIG`, with the name that it
    serves them by, which is also that of a copy; what others may edit over the API since then
    (prompt, model, steps) is taken from the entry. Raises `InvalidInput` for one that this version
    does not understand.
    """
    own = agent.model_config.get(OWN_CONFIG)
    if own is not None:
        spec = read_template(own)
        is_own = agent.system_prompt == shown_prompt(spec)
        return msgspec.structs.replace(
            spec,
            model=agent.model or spec.model,
            instructions=spec.instructions if is_own else agent.system_prompt,
            limits=msgspec.structs.replace(spec.limits, steps_max=agent.max_steps),
        )
    return agent_spec(
        name=agent.name,
        model=agent.model,
        system_prompt=agent.system_prompt,
        model_config=agent.model_config,
        max_steps=agent.max_steps,
        purpose=agent.purpose or "",
        tools=[
            ToolSpec(tool.name, tool.description, tool.input_schema, effect=tool.effect)
            for tool in tools
        ],
    )


def _differs(known: ToolRecord | None, tool: ToolRecord) -> bool:
    return known is None or (
        (known.description, known.input_schema, known.effect)
        != (tool.description, tool.input_schema, tool.effect)
    )
