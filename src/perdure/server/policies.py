"""The policies of tenants, and what people approved ahead, as the catalog keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.gate import Asked, Gate, Verdict
from perdure.policy.policy import Policy
from perdure.policy.reading import read_predicates
from perdure.policy.standing import Standing, StandingApproval
from perdure.ports import entries
from perdure.ports.catalog import TenantCatalog


class Unreadable:
    """A policy that this version does not understand: nothing is allowed by what cannot be read."""

    body = b""

    def __init__(self, version: str, why: str) -> None:
        self.version = version
        self._why = why

    def judge(self, asked: Asked) -> Verdict:
        """Deny."""
        return Verdict("deny", "policy_unreadable", self._why)

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Show nothing."""
        return False


def gate_of(entry: entries.Policy) -> Gate:
    """Return the gate that an entry of the catalog describes."""
    try:
        return Policy.from_json(entry.body.encode(), "the catalog")
    except InvalidInput as error:
        return Unreadable(entry.version, str(error))


def with_standing(gate: Gate, ahead: Sequence[entries.StandingApproval]) -> Gate:
    """Return a gate with what was approved ahead; what this version cannot read answers nothing."""
    found = [one for one in map(standing_of, ahead) if one is not None]
    return Standing(gate, found) if found else gate


def standing_of(entry: entries.StandingApproval) -> StandingApproval | None:
    """Return the standing approval that an entry describes; None if that is not understood."""
    try:
        arguments = read_predicates(entry.arguments, "the catalog")
    except InvalidInput:
        return None
    return StandingApproval(
        id=str(entry.id),
        agent=entry.agent,
        tool=entry.tool,
        declared=entry.declared,
        policy=entry.policy,
        arguments=arguments,
        expires_at=entry.expires_at,
        uses_per_session=entry.uses_per_session,
        roles=entry.roles,
    )


async def put_policy(catalog: TenantCatalog, policy: Policy) -> entries.Policy:
    """Make a policy a tenant's, instead of the one it had; servers have to be told.

    The same one changes nothing.
    """
    return await catalog.put(entries.Policy(body=policy.body.decode(), version=policy.version))


async def remove_policy(catalog: TenantCatalog) -> bool:
    """Leave a tenant without a policy; False if it had none."""
    found = await catalog.list(entries.Policy)
    for entry in found:
        await catalog.delete(entries.Policy, entry.id)
    return bool(found)
