"""What a catalog keeps: one struct for each kind of entry, in the words of the domain.

An entry's fields are kept as JSON, and a field that a stored entry lacks takes its default. So a
new field needs a default and nothing else, and a new kind is a new subclass of `Entry` with a
`kind` of its own. Times are milliseconds since 1970, UTC.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

Effect = Literal["read", "idempotent", "once"]
GardStatus = Literal["pending", "ready", "disconnected", "destroyed"]
DeliveryStatus = Literal["pending", "delivered", "failed"]
Scope = Literal["admin", "run", "read", "worker"]
Capability = Literal["llm", "tools"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What all entries have; the catalog itself gives `id`, `revision` and the two times.

    `id` is never given twice for entries of a kind, to no tenant. `revision` grows by one with
    every update. An entry with `archived_at` is put away: it can be read, but it has given its name
    back, and lists leave it out unless they are asked for it.
    """

    kind: ClassVar[str]
    handle_field: ClassVar[str] = ""
    """The field, if any, by which it is found without knowing its tenant."""

    id: int = 0
    revision: int = 0
    archived_at: int | None = None
    inserted_at: int = 0
    updated_at: int = 0

    @property
    def unique(self) -> str | None:
        """The name that no other entry of its kind has in its tenant; None if it has none."""
        name = getattr(self, "name", None)
        return name if isinstance(name, str) and self.archived_at is None else None

    @property
    def handle(self) -> str | None:
        """What no other entry of its kind has in any tenant; None if its kind has none."""
        return getattr(self, self.handle_field) if self.handle_field else None

    @property
    def of(self) -> int | None:
        """The id of the entry that it belongs to; None if its kind belongs to none."""
        return None


class Tenant(Entry, frozen=True, kw_only=True):
    """A namespace. `slug` is what it is called in every session id, and never changes.

    It is kept in itself: `create(slug, Tenant(slug=slug, name=...))`.
    """

    kind: ClassVar[str] = "tenant"
    handle_field: ClassVar[str] = "slug"

    slug: str
    name: str

    @property
    def unique(self) -> str | None:
        """None: it is found by its slug."""
        return None


class Agent(Entry, frozen=True, kw_only=True):
    """A definition. `model_config` and `tools_config` are opaque and replaced as a whole."""

    kind: ClassVar[str] = "agent"

    name: str
    system_prompt: str
    purpose: str | None = None
    status: str = "idle"
    model: str = ""
    model_config: dict[str, Any] = {}
    tools_config: dict[str, Any] = {}
    max_steps: int = 50


class ToolRecord(Entry, frozen=True, kw_only=True):
    """A tool as a worker registered it last, so that it is known while no worker is connected.

    A tool of a gard is another tool than one of the same name without; `unique_tool` names both.
    """

    kind: ClassVar[str] = "tool"

    name: str
    description: str
    input_schema: dict[str, Any]
    effect: Effect = "idempotent"
    gard: int | None = None

    @property
    def unique(self) -> str | None:
        """The name within its gard."""
        return unique_tool(self.name, self.gard) if self.archived_at is None else None

    @property
    def of(self) -> int | None:
        """The gard; 0 for a tool without."""
        return self.gard or 0


class Policy(Entry, frozen=True, kw_only=True):
    """The rules by which a tenant's calls are judged: a policy as JSON, and its version."""

    kind: ClassVar[str] = "policy"

    body: str
    version: str

    @property
    def unique(self) -> str | None:
        """A tenant has one policy at a time."""
        return "policy" if self.archived_at is None else None


class StandingApproval(Entry, frozen=True, kw_only=True):
    """What a person approved ahead: calls of a tool by an agent, with arguments like these.

    `arguments` are predicates as a rule of a policy has them. It is bound to the `policy`, by its
    version, and to what was `declared` of the tool, by its content. Each session may use it
    `uses_per_session` times; None is without limit. `by` had the `roles`. A revoked or expired one
    is archived, so that the log's word on it can be looked up.
    """

    kind: ClassVar[str] = "standing_approval"

    agent: str
    tool: str
    declared: str
    policy: str
    arguments: list[dict[str, Any]]
    expires_at: int
    uses_per_session: int | None = None
    by: str = ""
    roles: tuple[str, ...] = ()
    reason: str = ""


def unique_tool(name: str, gard: int | None) -> str:
    """Return what a tool is found by: its name, and the gard it belongs to."""
    return name if gard is None else f"{gard}\x1f{name}"


class Firing(msgspec.Struct, frozen=True):
    """A minute of a trigger that somebody claimed: what is to be sent, until it is known to be.

    It holds what the trigger said then, so that whoever sends it again sends the same.
    """

    minute: int
    claimed_at: int
    message: Any
    session_key: str | None


class Trigger(Entry, frozen=True, kw_only=True):
    """A message sent to an agent at times that a cron expression names, in a time zone.

    `last_fired_at` is the minute that was claimed last: it is moved by an `update`, which only one
    of all that try can win, and which puts the `firing` there that it owes. `catch_up` says what
    becomes of minutes that passed while no server ran: nothing, or one firing for all of them.
    """

    kind: ClassVar[str] = "trigger"

    agent_id: int
    name: str
    cron: str
    message: Any
    timezone: str = "UTC"
    catch_up: Literal["skip", "once"] = "skip"
    conversation_key: str | None = None
    enabled: bool = True
    last_fired_at: int | None = None
    firing: Firing | None = None

    @property
    def of(self) -> int | None:
        """The agent."""
        return self.agent_id


class Hook(Entry, frozen=True, kw_only=True):
    """An address that others post to. Its token is shown once and kept as `token_digest` only.

    `signing_secret` is sealed by whoever stores it: the catalog never holds it in clear.
    """

    kind: ClassVar[str] = "hook"
    handle_field: ClassVar[str] = "token_digest"

    agent_id: int
    name: str
    token_digest: str
    message_path: str | None = None
    conversation_key_path: str | None = None
    signature_type: str = "none"
    signing_secret: str | None = None
    enabled: bool = True

    @property
    def of(self) -> int | None:
        """The agent."""
        return self.agent_id


class Endpoint(Entry, frozen=True, kw_only=True):
    """An address that is told about events; without `events` about all of them.

    With `agent_id` only those of this agent's runs. `signing_secrets` are sealed like a hook's;
    there are two while the receiver changes from one to the other. `failures` counts the attempts
    in a row that failed, and after one nothing is sent before `retry_at`. One that is not enabled
    is paused, and owed what happens meanwhile, unless `disabled_because` says why it was given up.
    """

    kind: ClassVar[str] = "endpoint"

    name: str
    url: str
    signing_secrets: tuple[str, ...]
    events: tuple[str, ...] = ()
    agent_id: int | None = None
    enabled: bool = True
    disabled_because: str | None = None
    failures: int = 0
    retry_at: int = 0


class Delivery(Entry, frozen=True, kw_only=True):
    """An event that an endpoint is owed. One that needs nothing more is archived.

    `message_id` follows from the event and the endpoint, and every attempt says it, so that neither
    we nor the receiver take one event for two. `body` is what is sent, byte for byte. It is
    `claimed` while somebody is at an attempt.
    """

    kind: ClassVar[str] = "delivery"
    handle_field: ClassVar[str] = "message_id"

    endpoint_id: int
    message_id: str
    event: str
    body: str
    status: DeliveryStatus = "pending"
    attempts: int = 0
    next_at: int = 0
    claimed: bool = False
    last_error: str | None = None

    @property
    def of(self) -> int | None:
        """The endpoint."""
        return self.endpoint_id


class UntoldRun(Entry, frozen=True, kw_only=True):
    """A run whose events endpoints are still to be told: there before it begins, gone when it ends.

    `name` is the run's id; what happened up to the sequence `told` is among the deliveries.
    """

    kind: ClassVar[str] = "untold_run"

    name: str
    told: int = 0


class Gard(Entry, frozen=True, kw_only=True):
    """A place that tools and model calls are bound to, held by one live worker at a time.

    Its claim token is shown once and kept as `claim_digest`. While it is `ready`, `worker_id` holds
    it over the socket that `node` names. A destroyed gard is archived.
    """

    kind: ClassVar[str] = "gard"

    name: str | None = None
    status: GardStatus = "pending"
    template: str | None = None
    metadata: dict[str, Any] = {}
    claim_digest: str = ""
    worker_id: str | None = None
    node: str | None = None

    @property
    def unique(self) -> str | None:
        """None: several gards may have the same name."""
        return None


class Port(Entry, frozen=True, kw_only=True):
    """A service that a worker offers in its gard."""

    kind: ClassVar[str] = "port"

    gard_id: int
    internal_port: int
    url: str | None = None
    name: str | None = None
    protocol: Literal["http", "https", "tcp"] = "http"

    @property
    def unique(self) -> str | None:
        """None: several ports may have the same name."""
        return None

    @property
    def of(self) -> int | None:
        """The gard."""
        return self.gard_id


class Key(Entry, frozen=True, kw_only=True):
    """An API key, without its secret: `digest` is a keyed hash of it, in hex.

    `key_id` is the part of the key that finds it. A worker's key may be bound to a gard and to
    capabilities. Whoever approves calls with it has the `roles`. A revoked key is archived.
    """

    kind: ClassVar[str] = "key"
    handle_field: ClassVar[str] = "key_id"

    key_id: str
    digest: str
    scope: Scope
    name: str | None = None
    gard: int | None = None
    capabilities: tuple[Capability, ...] = ()
    expires_at: int | None = None
    last_used_at: int | None = None
    roles: tuple[str, ...] = ()

    @property
    def unique(self) -> str | None:
        """None: two keys of one name are how a key is rotated."""
        return None


class SessionNote(Entry, frozen=True, kw_only=True):
    """What is kept about a session besides its log; `name` is its agent's id and its key."""

    kind: ClassVar[str] = "session_note"

    name: str
    title: str | None = None
    put_away_at: int | None = None


class ConversationKey(Entry, frozen=True, kw_only=True):
    """How often a conversation's key began anew; `name` is the agent's id and the key."""

    kind: ClassVar[str] = "conversation_key"

    name: str
    generation: int = 0


class Answered(Entry, frozen=True, kw_only=True):
    """A request that had an idempotency key, and what it was answered.

    `name` is a hash of what was asked and of the key, `request` one of the body, and `answer` is
    sealed. Without an answer it is a claim: somebody is at it, or was when he died. `claims` counts
    those that took it over.
    """

    kind: ClassVar[str] = "answered"

    name: str
    request: str
    status: int = 0
    answer: str | None = None
    claims: int = 0
