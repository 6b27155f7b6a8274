"""Launching runs of other agents, and what becomes of a run when one of them ends.

A child has a session of its own, in which nobody else's run is in progress: a launch into one that
is busy is refused there at once, never queued. So a run waits only for runs that it launched
itself, and those for theirs; with the check of the lineage no two of them wait for each other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core import ids
from perdure.core.agent import AgentSpec, Definition, Peers, ToolSpec
from perdure.core.authority import Bounded
from perdure.core.decision import Draft, Refusal
from perdure.core.family import Child, Parent
from perdure.core.gate import Asked, Gate, Verdict
from perdure.core.limits import clip
from perdure.core.messages import INHERITED_CONTEXT, AssistantMessage, Message, UserMessage
from perdure.core.state import Call, Run

_encode = msgspec.json.Encoder().encode
OWN_KEY, TREE_KEY = "subagent_", "tree_"
"""How the keys of sessions begin in which children are run: each its own, or shared in a tree."""
BUSY, ABORTED, FAILED = "busy", "aborted", "child_failed"
NAME_CHARS_MAX = 64
INHERITED_META = ("gard", "source", "policy")
"""What a child has of what came with its parent's message: where it is run, and where agents and
policy are loaded from."""


def why_not(draft: Draft, arguments: dict[str, Any], call: str) -> tuple[str, str] | None:
    """Return the rule by which a launch is refused and what the model is told, or None."""
    spec, run = draft.context.agent.spec, _run(draft)
    policy, name = spec.subagents, arguments.get("agent_name")
    wrong = _not_a_launch(arguments)
    if wrong is not None:
        return "invalid_arguments", wrong
    assert isinstance(name, str)
    if policy.mode == "disabled":
        return "disabled", "This agent may launch no others."
    if policy.mode == "allowlist" and name not in policy.allowed:
        may = ", ".join(policy.allowed) or "none"
        return "not_allowlisted", f"This agent may not launch {name!r}. It may launch: {may}."
    if _depth(run) + 1 > policy.depth_max:
        return "max_depth", f"At most {policy.depth_max} runs may wait for one another."
    found = draft.context.peers.find(name)
    if found is None:
        known = ", ".join(one["name"] for one in listed(draft.context.peers, spec)) or "none"
        return "unknown_agent", f"There is no agent {name!r}. The agents are: {known}."
    if found[0] == draft.context.session.agent:
        return "self", "An agent cannot launch itself."
    if run.children >= policy.children_max:
        return "max_children", f"One run launches at most {policy.children_max} others."
    return _cycle(draft, found[0], _key(draft, found, arguments, call), name)


def launch(draft: Draft, what: dict[str, Any], arguments: dict[str, Any], key: str) -> None:
    """Launch what was allowed, if nothing speaks against it by now; `what` is where it stands."""
    refused = why_not(draft, arguments, what["call"])
    if refused is not None:
        draft.add(e.ToolCallDenied(**{**what, "rule": refused[0]}, content=refused[1]))
        return
    found = draft.context.peers.find(arguments["agent_name"])
    assert found is not None
    draft.add(
        e.ChildLaunched(
            **what,
            child=key,
            agent=found[0],
            key=_key(draft, found, arguments, what["call"]),
            agent_name=arguments["agent_name"],
            content=arguments["message"],
            context=arguments.get("context"),
            parent=_parent(draft, what["call"]),
            meta=_inherited_meta(draft) or None,
        )
    )


def message(launched: e.ChildLaunched, child: str) -> c.SendMessage:
    """Return the command that starts a child, as the run `child`."""
    return c.SendMessage(
        id=child,
        content=launched.content,
        meta=launched.meta,
        inherited=_inherited(launched.context),
        parent=launched.parent,
    )


def end(draft: Draft, command: c.EndChild) -> Any:
    """Take that a child has ended: the model is told, or it is launched again, or the run ends."""
    call = draft.call(command.call, ("child",), "launched")
    if isinstance(call, Refusal):
        return call
    child = call.child
    if child is None or child.run != command.child:
        return Refusal("not_owed", f"call {call.id!r} does not wait for run {command.child!r}")
    if command.status == "completed":
        draft.add(
            e.ToolCallSucceeded(
                at=draft.now, call=call.id, content=command.content, by=f"child:{child.run}"
            )
        )
        return None
    policy = draft.context.agent.spec.subagents
    how = policy.on_failure if command.status == "failed" else "tell"
    if command.code == ABORTED:
        how = "abort"
    if how == "restart" and _restart(draft, call, child, command):
        return None
    _failed(draft, call, command)
    return policy.then if how == "restart" else how


def list_agents(draft: Draft, call: str) -> None:
    """Answer which agents there are, as JSON: providers take no other lists for an answer."""
    told = _encode(listed(draft.context.peers, draft.context.agent.spec)).decode()
    draft.add(e.ToolCallSucceeded(at=draft.now, call=call, content=told, by="runtime"))


def listed(peers: Peers, spec: AgentSpec) -> list[dict[str, str]]:
    """Return the names and purposes of all other agents."""
    return [
        {"name": one.spec.name, "purpose": one.spec.purpose}
        for _, one in peers.launchable()
        if one.spec.name != spec.name
    ]


class _Closed:
    """The gate for a run whose parents are not all known: it denies."""

    __slots__ = ("_missing", "body", "version")

    def __init__(self, gate: Gate, missing: str) -> None:
        self._missing, self.version, self.body = missing, gate.version, gate.body

    def judge(self, asked: Asked) -> Verdict:
        why = f"the agent {self._missing!r}, which launched this run, is not known any more"
        return Verdict("deny", "no_parent", why)

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        return False


def gate_for(gate: Gate, run: Run | None, peers: Peers) -> Gate:
    """Return the gate for a run: that of a child lets through what it does for all its parents."""
    if run is None or run.parent is None:
        return gate
    parents: list[AgentSpec] = []
    for agent, _ in run.parent.lineage:
        if agent not in peers.known:
            return _Closed(gate, agent)
        parents.append(peers.known[agent].spec)
    return Bounded(gate, tuple(parents))


def _run(draft: Draft) -> Run:
    assert draft.state.run is not None
    return draft.state.run


def _depth(run: Run) -> int:
    return 0 if run.parent is None else run.parent.depth


def _parent(draft: Draft, call: str) -> Parent:
    """Return what a run is to those that it launches."""
    run, session = _run(draft), draft.context.session
    return Parent(run.id, call, _root(run), (*_above(run), (session.agent, session.key)))


def _above(run: Run) -> tuple[tuple[str, str], ...]:
    return () if run.parent is None else run.parent.lineage


def _root(run: Run) -> str:
    return run.id if run.parent is None else run.parent.root


def _inherited_meta(draft: Draft) -> dict[str, Any]:
    given = _run(draft).meta or {}
    return {name: given[name] for name in INHERITED_META if name in given}


def _not_a_launch(arguments: dict[str, Any]) -> str | None:
    for name in ("agent_name", "message"):
        if not isinstance(arguments.get(name), str) or not arguments[name].strip():
            return f"`{name}` must be a non-empty string."
    session, context = arguments.get("session"), arguments.get("context")
    if session is not None:
        usable = isinstance(session, str) and 0 < len(session) <= NAME_CHARS_MAX
        if not usable or not session.isprintable():
            return f"`session` must be 1 to {NAME_CHARS_MAX} printable characters."
    if context is not None:
        messages = context.get("messages", []) if isinstance(context, dict) else None
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            return "`context` must be an object with `messages`, each with `role` and `content`."
    return None


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and one.get("role") in ("user", "assistant") and "content" in one


def _inherited(context: dict[str, Any] | None) -> tuple[tuple[Message, ...], ...]:
    """Return the context of a launch as groups of its history."""
    groups: list[tuple[Message, ...]] = []
    for one in (context or {}).get("messages", []):
        kind = UserMessage if one["role"] == "user" else AssistantMessage
        groups.append((kind(one["content"]),))
    if data := (context or {}).get("data"):
        groups.append((UserMessage(data, kind=INHERITED_CONTEXT),))
    return tuple(groups)


def _key(draft: Draft, found: tuple[str, Definition], arguments: dict[str, Any], call: str) -> str:
    """Return the key of the session in which a child is run."""
    run, session = _run(draft), draft.context.session
    name = arguments.get("session")
    if name is not None:
        return f"{TREE_KEY}{ids.digest(_root(run).encode())[:12]}_{name}"
    if found[1].spec.subagents.session == "per_parent":
        return f"{OWN_KEY}{ids.digest(str(session).encode())[:24]}"
    return _fresh(call, f"{session}/{run.id}/{call}")


def _fresh(call: str, whose: str) -> str:
    return f"{OWN_KEY}{call}_{ids.digest(whose.encode())[:12]}"


def _cycle(draft: Draft, agent: str, key: str, name: str) -> tuple[str, str] | None:
    """Refuse what would wait for itself, and name everyone on the way."""
    run, session = _run(draft), draft.context.session
    waiting = (*_above(run), (session.agent, session.key))
    if (agent, key) not in waiting:
        return None
    peers = draft.context.peers.known
    way = [
        peers[one].spec.name if one in peers else one
        for one, _ in waiting[waiting.index((agent, key)) :]
    ]
    return "cycle", f"These would wait for one another: {' -> '.join([*way, name])}."


def _restart(draft: Draft, call: Call, child: Child, command: c.EndChild) -> bool:
    """Launch a child again, in a fresh session; False if that was done often enough."""
    policy = draft.context.agent.spec.subagents
    recent = [at for at in child.restarts if draft.now - at < policy.restart_window_ms]
    if len(recent) >= policy.restarts_max:
        return False
    again = ids.digest(f"{child.run}/again".encode())
    draft.add(
        e.ChildRestarted(
            at=draft.now,
            call=call.id,
            child=again,
            key=_fresh(call.id, again),
            reason=clip(command.message),
        )
    )
    return True


def _failed(draft: Draft, call: Call, command: c.EndChild) -> None:
    kind = "subagent_busy" if command.code == BUSY else "subagent_failed"
    draft.add(
        e.ToolCallFailed(
            at=draft.now,
            call=call.id,
            kind=kind,
            content=clip(command.message),
            by=f"child:{command.child}",
        )
    )
