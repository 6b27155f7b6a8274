"""A session that launches others."""

from __future__ import annotations

from typing import Any

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import AgentSpec, Definition, Subagents, define
from perdure.core.family import Parent
from tests.core.story import Story, agent, call


def peer(name: str, **more: Any) -> Definition:
    """Return another agent."""
    return define(AgentSpec(name, "scripted", purpose=f"Is {name}.", **more))


PET = peer("pet", subagents=Subagents(session="per_parent"))
PEERS = (peer("ann"), peer("bob"), PET, peer("chief"))
ABOVE = Parent("r0", "1.1.t0", "r0", (("chief", "k0"),))


class Family(Story):
    """A session that launches others, and what they tell it."""

    def __init__(self, subagents: Subagents | None = None, gate: Any = None) -> None:
        definition = agent(subagents=subagents or Subagents())
        super().__init__(definition, *([] if gate is None else [gate]), peers=PEERS)

    def launch(self, *names: str, **more: Any) -> list[str]:
        """Let the model launch agents."""
        asked = [
            call("launch_agent", f"l{n}", agent_name=name, message="go", **more)
            for n, name in enumerate(names)
        ]
        return self.reply(*asked)

    def ends(self, place: int, status: Any = "completed", **more: Any) -> list[str]:
        """Let the child of a place end."""
        found = self.state.calls[f"1.1.t{place}"]
        assert found.child is not None
        return self.child(found.id, found.child.run, status, **more)

    def child(self, call_id: str, child: str, status: Any, **more: Any) -> list[str]:
        """Let a child tell its end."""
        self._ids += 1
        told = {"run": "r1", "call": call_id, "child": child, **more}
        return self.tell(c.EndChild(id=f"e{self._ids}", status=status, **told))

    def letters(self) -> list[tuple[str, str]]:
        """Return what is owed to whom."""
        return [(letter.what, letter.agent) for letter in self.state.outbox]

    def denial(self) -> tuple[str, str]:
        """Return the rule of the last denial and what the model is told."""
        found = [one for one in self.log if isinstance(one, e.ToolCallDenied)][-1]
        return found.rule, found.content
