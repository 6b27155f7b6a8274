"""The policies of tenants: kept in the catalog, and in force from the next call on."""

from __future__ import annotations

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.gate import Asked, Gate, Verdict
from perdure.policy.policy import Policy
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
