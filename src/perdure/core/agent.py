"""An agent is data: model, instructions, tools, limits and policies, addressed by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from perdure.core.budget import Budget
from perdure.core.durability import Durability, suffices
from perdure.core.errors import InvalidInput
from perdure.core.ids import digest

Effect = Literal["read", "idempotent", "once"]
OnUnknown = Literal["tell", "ask"]
Builtin = Literal["wait", "ask_human", "launch_agent", "list_agents"]

_canonical = msgspec.json.Encoder(order="sorted").encode


class ToolSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the runtime knows of a tool; the function itself stays with the worker.

    `effect` is what the tool promises about being repeated. `on_unknown` says who is told when
    nobody can know whether a `once` tool acted: the model (`tell`) or a person (`ask`). A call that
    was made for one `version` is executed by no other. `credentials` are the names of the secrets
    that it is handed. A call needs the `capabilities`, and a gate that grants them. The far end of
    an `idempotent` tool honours a key for `key_window_ms` after it saw it first; None is for ever.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    effect: Effect = "once"
    probe: bool = False
    on_unknown: OnUnknown = "tell"
    timeout_ms: int = 300_000
    capabilities: tuple[str, ...] = ()
    isolated: bool = False
    builtin: Builtin | None = None
    version: str = ""
    credentials: tuple[str, ...] = ()
    key_window_ms: int | None = None


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one run may spend. `None` means without limit."""

    steps_max: int = 50
    tokens_max: int | None = None
    wall_ms_max: int | None = None


class ContextPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which part of the history the model is shown.

    `none`: everything. `window`: about the last `window_messages`, never splitting a call from
    its result. `compact`: once a reply reports `compact_at_tokens` input tokens, all but about
    the last `keep_messages` are folded into a summary by a model call.
    """

    strategy: Literal["none", "window", "compact"] = "none"
    window_messages: int = 40
    compact_at_tokens: int = 100_000
    keep_messages: int = 20


class Subagents(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which agents a run may launch, and what becomes of it when one of them fails.

    `mode` lets it launch all others, those that are `allowed`, or none; `may_list` lets it ask
    which there are. A run that nobody launched is at depth 0, and none is deeper than `depth_max`;
    one run launches at most `children_max`. When a child fails, `tell` tells the model, `restart`
    launches it again, `escalate` fails the run, so that its parent decides, and `abort` fails the
    whole tree. It is restarted at most `restarts_max` times in `restart_window_ms`; after that
    comes `then`. `session` says where this agent itself is run as a child: each time in a fresh
    session, or always in the one that it has with the parent's session.
    """

    mode: Literal["open", "allowlist", "disabled"] = "open"
    allowed: tuple[str, ...] = ()
    may_list: bool = True
    depth_max: int = 3
    children_max: int = 100
    on_failure: Literal["tell", "restart", "escalate", "abort"] = "tell"
    restarts_max: int = 3
    restart_window_ms: int = 600_000
    then: Literal["tell", "escalate", "abort"] = "tell"
    session: Literal["fresh", "per_parent"] = "fresh"


class Reminders(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often people are reminded of what a run asks them: every `after_ms`, so many `times`."""

    after_ms: int
    times: int = 3


class AgentSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The definition of an agent, without code and without secrets.

    `credentials` are references to secrets by their names, as in `{"model": "env:TEAM_KEY"}`: see
    `perdure.core.references`. `model_timeout_ms` is how long one reply may take; None leaves it to
    whoever executes the call. `durability` is what the store has to give. `grants` are capabilities
    that its tools may need, as in `net.http`, or `net.*` for all of a kind. `purpose` is
    what other agents are told that it is for. Without `reminders` people are asked once. `budget`
    is what each of its runs may spend before somebody is asked.
    """

    name: str
    model: str
    instructions: str = ""
    tools: tuple[ToolSpec, ...] = ()
    limits: Limits = Limits()
    context: ContextPolicy = ContextPolicy()
    on_failure: Literal["retry", "stop"] = "retry"
    resume: Literal["eager", "lazy"] = "eager"
    max_tokens: int | None = None
    model_timeout_ms: int | None = None
    credentials: dict[str, str] = {}
    durability: Durability | None = None
    grants: tuple[str, ...] = ()
    purpose: str = ""
    subagents: Subagents = Subagents()
    reminders: Reminders | None = None
    budget: Budget | None = None


class Definition(msgspec.Struct, frozen=True):
    """An agent's specification with its content address.

    The log names the definition by its digest; `blobs` holds its bytes, which a store keeps once.
    """

    spec: AgentSpec
    digest: str
    tools_by_name: dict[str, ToolSpec]
    blobs: dict[str, bytes]


class Peers(msgspec.Struct, frozen=True, gc=False):
    """The agents of a tenant by the names of their sessions; the `retired` are launched no more."""

    known: Mapping[str, Definition] = {}
    retired: frozenset[str] = frozenset()

    def find(self, name: str) -> tuple[str, Definition] | None:
        """Return an agent that calls itself so, with the name of its sessions."""
        for agent, definition in self.launchable():
            if definition.spec.name == name:
                return agent, definition
        return None

    def launchable(self) -> Iterator[tuple[str, Definition]]:
        """Yield the agents that may be launched, with the names of their sessions."""
        yield from (one for one in self.known.items() if one[0] not in self.retired)


NO_PEERS = Peers()


def check_durability(spec: AgentSpec, given: Durability) -> None:
    """Raise `InvalidInput` for an agent that demands more durability than its store gives."""
    if spec.durability is not None and not suffices(given, spec.durability):
        raise InvalidInput(
            f"agent {spec.name!r} demands the durability {spec.durability}, and the store gives "
            f"{given}: take another store, or demand less"
        )


def define(spec: AgentSpec) -> Definition:
    """Return the definition of `spec` with its digest."""
    whole = _canonical(spec)
    return Definition(
        spec=spec,
        digest=digest(whole),
        tools_by_name={tool.name: tool for tool in spec.tools},
        blobs={digest(whole): whole},
    )
