"""An agent is data: model, instructions, tools, limits and policies, addressed by content."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.core.durability import Durability, suffices
from perdure.core.errors import InvalidInput
from perdure.core.ids import digest

Effect = Literal["read", "idempotent", "once"]
OnUnknown = Literal["tell", "ask"]

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
    builtin: Literal["wait", "ask_human"] | None = None
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


class AgentSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The definition of an agent, without code and without secrets.

    `credentials` are references to secrets by their names, as in `{"model": "env:TEAM_KEY"}`: see
    `perdure.core.references`. `model_timeout_ms` is how long one reply may take; None leaves it to
    whoever executes the call. `durability` is what the store has to give. `grants` are capabilities
    that its tools may need, as in `net.http`, or `net.*` for all of a kind.
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


class Definition(msgspec.Struct, frozen=True):
    """An agent's specification with its content address.

    The log names the definition by its digest; `blobs` holds its bytes, which a store keeps once.
    """

    spec: AgentSpec
    digest: str
    tools_by_name: dict[str, ToolSpec]
    blobs: dict[str, bytes]


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
