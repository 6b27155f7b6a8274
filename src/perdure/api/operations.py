"""Every operation of the REST API, as one table: the router, the client and the document read it.

An operation's `id` names its handler. Its `errors` are what it may answer besides its own answer;
most follow from what it takes: a key, ids in the path, parameters, a body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from perdure.api import shapes as s
from perdure.api.limits import BODY_BYTES_MAX, BODY_SECONDS_MAX, ENDPOINTS_MAX

PREFIX = "/api/v1"
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
HTML = "text/html"

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Scope = Literal["read", "run", "admin"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be asked of the server.

    `scope` is what the key must allow, None if no key is needed (`admin` may do what `run` may, and
    `run` what `read` may). `query` and `body` are shapes to decode with; a `body` of `object` is
    any JSON object. `answer` is the shape of the answer, None if it has no body, and `media` its
    types. `conflicts` and `refusals` are sentences of 409 and 422 that are this operation's own.
    With `idempotent` an `Idempotency-Key` makes a repetition harmless. Of the fields of the body,
    `admin_fields` are for keys of the scope `admin` alone. With `operators` the key has to be one
    of the tenant whose admins look after the server itself.
    """

    id: str
    methods: tuple[Method, ...]
    path: str
    summary: str
    scope: Scope | None = "read"
    query: type[msgspec.Struct] | None = None
    body: Any = None
    status: int = 200
    answer: Any = None
    media: tuple[str, ...] = (JSON,)
    conflicts: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    idempotent: bool = False
    admin_fields: tuple[str, ...] = ()
    operators: bool = False
    other_errors: Mapping[int, str] = {}

    @property
    def tag(self) -> str:
        """The noun that the operation is about."""
        return self.path.removeprefix(PREFIX).split("/")[1].removesuffix(".json")

    @property
    def path_parameters(self) -> tuple[str, ...]:
        """The names in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def integers(self) -> tuple[str, ...]:
        """Those of the names in the path that stand for an integer: ids, but no tokens or keys."""
        return () if self.scope is None else tuple({"id"} & set(self.path_parameters))

    def errors(self) -> dict[int, str]:
        """Return everything that may go wrong: status -> what is said. The shape is `Failure`."""
        plain: dict[int, list[str]] = {}
        if self.path.startswith(PREFIX):
            plain[406] = ["The answer is JSON, and `Accept` does not allow it."]
            plain[429] = [
                "Too many requests, or runs: `Retry-After` says how many seconds to wait."
            ]
            plain[503] = ["The server cannot carry this out now; nothing was done."]
        if self.scope is not None:
            plain[401] = ["unauthorized"]
            plain[403] = [f"The key does not allow this: it needs the scope `{self.scope}`."]
            if self.operators:
                plain[403].append("it needs one of the tenant that looks after the server")
            if self.admin_fields:
                plain[403].append(f"`admin` is needed for {' and '.join(self.admin_fields)}")
        if self.path_parameters:
            plain[404] = ["not found: there is none with this id, or it is not yours"]
        if self.integers:
            plain[400] = ["Bad Request: the id in the path is not an integer."]
        if self.body is not None:
            plain[400] = [*plain.get(400, []), "Bad Request: the body is not a JSON object."]
            plain[408] = [f"The body was not there within {BODY_SECONDS_MAX} s."]
            plain[413] = [f"Too many bytes: {BODY_BYTES_MAX}, if not set otherwise, are taken."]
            plain[415] = ["The body is not JSON."]
        if self.conflicts or self.idempotent:
            under_way = "a request with this Idempotency-Key is under way; try again"
            plain[409] = [*self.conflicts, *([under_way] if self.idempotent else ())]
        for status, sentence in self.other_errors.items():
            plain[status] = [*plain.get(status, []), sentence]
        if self.query is not None or self.body is not None or self.idempotent or self.refusals:
            plain[422] = ["What is wrong, field by field.", *self.refusals]
        return {status: _joined(said) for status, said in sorted(plain.items())}


def _joined(said: Iterable[str]) -> str:
    """Return sentences, and what a server may say instead, as one text."""
    return "; ".join(said).replace(".; ", ". ")


def _get(id: str, path: str, answer: Any, summary: str, **more: Any) -> Operation:
    return Operation(
        id=id, methods=("GET",), path=PREFIX + path, answer=answer, summary=summary, **more
    )


def _post(id: str, path: str, answer: Any, summary: str, **more: Any) -> Operation:
    more = {"scope": "run", **more}
    return Operation(
        id=id, methods=("POST",), path=PREFIX + path, answer=answer, summary=summary, **more
    )


def _update(id: str, path: str, body: Any, answer: Any, summary: str, **more: Any) -> Operation:
    return Operation(
        id=id,
        methods=("PUT", "PATCH"),
        path=PREFIX + path,
        body=body,
        answer=answer,
        summary=summary,
        **{"scope": "admin", **more},
    )


def _delete(id: str, path: str, summary: str, **more: Any) -> Operation:
    more = {"scope": "admin", "status": 204, **more}
    return Operation(id=id, methods=("DELETE",), path=PREFIX + path, summary=summary, **more)


BUSY = "agent is busy"
NODE_NAMES = "several nodes have this name: say which one by its id"
_MAKES: dict[str, Any] = {"scope": "admin", "status": 201, "idempotent": True}
_STARTS: dict[str, Any] = {"status": 202, "idempotent": True}

AGENTS = (
    _get("list_agents", "/agents", s.Page[s.Agent], "All agents, newest first", query=s.PageQuery),
    _post(
        "create_agent", "/agents", s.Data[s.Agent], "Make an agent", body=s.AgentCreate, **_MAKES
    ),
    _get("get_agent", "/agents/{id}", s.Data[s.Agent], "One agent, archived or not"),
    _update("update_agent", "/agents/{id}", s.AgentUpdate, s.Data[s.Agent], "Change an agent"),
    _delete(
        "archive_agent",
        "/agents/{id}",
        "Archive an agent: its name is free again",
        query=s.ForceQuery,
        conflicts=("agent has an active run — pass force=true to archive anyway",),
    ),
    _post(
        "send_message",
        "/agents/{id}/messages",
        s.Accepted,
        "Send a message: it starts a run, joins or ends one, or answers its question",
        body=s.MessageCreate,
        conflicts=(BUSY,),
        refusals=("missing required field: content",),
        **_STARTS,
    ),
    _get(
        "agent_status",
        "/agents/{id}/status",
        s.Data[s.AgentStanding],
        "How the conversation `default` stands",
    ),
    _get(
        "list_agent_runs",
        "/agents/{id}/runs",
        s.Page[s.Run],
        "An agent's runs, newest first",
        query=s.PageQuery,
    ),
    _get(
        "list_conversations",
        "/agents/{id}/conversations",
        s.Page[s.Conversation],
        "An agent's conversations, the latest first",
        query=s.PageQuery,
    ),
    _get(
        "get_conversation",
        "/agents/{id}/conversations/{key}",
        s.Data[s.Conversation],
        "One conversation",
    ),
    _delete(
        "delete_conversation",
        "/agents/{id}/conversations/{key}",
        "Delete a conversation: the key begins anew",
        scope="run",
        status=200,
        answer=s.Status,
    ),
    _get(
        "agent_usage",
        "/agents/{id}/usage",
        s.Data[s.Usage],
        "What an agent has used, and what it cost",
        query=s.UsageQuery,
    ),
)

RUNS = (
    _get("list_runs", "/runs", s.Page[s.Run], "Runs, newest first", query=s.RunQuery),
    _get("get_run", "/runs/{id}", s.Data[s.Run], "One run"),
    _get(
        "wait_for_run",
        "/runs/{id}/wait",
        s.Data[s.Run],
        "One run, once it has ended or waits for somebody, or when the time is over",
        query=s.WaitQuery,
    ),
    _get(
        "list_events",
        "/runs/{id}/events",
        s.Page[s.Event],
        "A run's events in order; as a stream, which goes on after `Last-Event-ID`",
        query=s.EventQuery,
        media=(JSON, EVENT_STREAM),
    ),
    _get("get_summary", "/runs/{id}/summary", s.Data[s.Summary], "A run at a glance"),
    _post(
        "retry_run",
        "/runs/{id}/retry",
        s.Accepted,
        "Go on with a run that failed, or send a completed one's message in a fresh conversation",
        conflicts=("run is still in progress", BUSY),
        refusals=("run has no user_message to retry",),
        **_STARTS,
    ),
    _post(
        "fork_run",
        "/runs/{id}/fork",
        s.Forked,
        "Go on from a run after one of its steps, in a session of its own",
        body=s.ForkCreate,
        status=201,
        conflicts=(
            "run is still in progress",
            "run never began: send its message again",
            "another agent is named as the copy would be: rename it",
        ),
        refusals=(
            "step must be a non-negative integer",
            "step N is beyond the run's last step (M)",
            "message must be text or a content block",
        ),
        idempotent=True,
        admin_fields=("model", "system_prompt"),
    ),
    _post(
        "reply_to_run",
        "/runs/{id}/reply",
        s.Accepted,
        "Answer a run's question",
        body=s.ReplyCreate,
        status=202,
        conflicts=("run is not waiting for input",),
        refusals=("answer is required",),
        idempotent=True,
    ),
    _post(
        "resolve_call",
        "/runs/{id}/resolve",
        s.Accepted,
        "Say what became of a call whose outcome is unknown",
        body=s.ResolveCreate,
        status=202,
        conflicts=("call is not waiting for a decision",),
        idempotent=True,
    ),
    _post(
        "cancel_run",
        "/runs/{id}/cancel",
        s.Accepted,
        "End a run, wherever it stands",
        body=s.CancelCreate,
        status=202,
        conflicts=("run has already ended",),
        idempotent=True,
    ),
)

SESSIONS = (
    _get(
        "list_sessions",
        "/sessions",
        s.Page[s.Session],
        "Sessions of all agents, the latest first",
        query=s.SessionQuery,
    ),
    _get(
        "get_session",
        "/sessions/{id}",
        s.Data[s.SessionWhole],
        "One session with its messages and runs",
    ),
    _update(
        "update_session",
        "/sessions/{id}",
        s.SessionUpdate,
        s.Data[s.Session],
        "Name a session",
        scope="run",
    ),
    _delete(
        "archive_session",
        "/sessions/{id}",
        "Archive a session",
        scope="run",
        query=s.ForceQuery,
        conflicts=("session has an active run — pass force=true to archive anyway",),
    ),
    _post("restore_session", "/sessions/{id}/restore", s.Data[s.Session], "Take a session back"),
    _post(
        "release_session",
        "/sessions/{id}/release",
        s.Data[s.Session],
        "Let a session go on that is in quarantine: its host died too often while it ran it",
        conflicts=("session is not in quarantine",),
    ),
)

CONNECTED = (
    _get("list_tools", "/tools", s.Tools, "The tools that agents may use now"),
    _get(
        "list_workers",
        "/workers",
        s.Page[s.Worker],
        "The workers that are connected",
        query=s.PageQuery,
    ),
    _get(
        "tenant_usage",
        "/usage",
        s.Data[s.Usage],
        "What all agents have used, and what it cost",
        query=s.UsageQuery,
    ),
)

TRIGGERS = (
    _get("list_triggers", "/triggers", s.Page[s.Trigger], "Triggers by id", query=s.TriggerQuery),
    _post(
        "create_trigger",
        "/triggers",
        s.Data[s.Trigger],
        "Make a trigger",
        body=s.TriggerCreate,
        **_MAKES,
    ),
    _get("get_trigger", "/triggers/{id}", s.Data[s.Trigger], "One trigger"),
    _update(
        "update_trigger", "/triggers/{id}", s.TriggerUpdate, s.Data[s.Trigger], "Change a trigger"
    ),
    _delete("delete_trigger", "/triggers/{id}", "Delete a trigger"),
    _post(
        "fire_trigger",
        "/triggers/{id}/fire",
        s.Accepted,
        "Send a trigger's message now",
        conflicts=(BUSY,),
        **_STARTS,
    ),
)

GARDS = (
    _get("list_gards", "/gards", s.Page[s.Gard], "Gards by id, also destroyed", query=s.PageQuery),
    _post(
        "create_gard",
        "/gards",
        s.Data[s.GardMade],
        "Make a gard; its claim token is shown this once",
        body=s.GardCreate,
        **_MAKES,
    ),
    _get("get_gard", "/gards/{id}", s.Data[s.GardWhole], "One gard with its ports"),
    _update("update_gard", "/gards/{id}", s.GardUpdate, s.Data[s.Gard], "Change a gard"),
    _delete(
        "destroy_gard",
        "/gards/{id}",
        "Destroy a gard: its worker is sent away",
        query=s.ForceQuery,
        conflicts=("gard has an active run — pass force=true to destroy anyway",),
    ),
    _get(
        "list_ports",
        "/gards/{id}/ports",
        s.Page[s.Port],
        "A gard's ports, by number",
        query=s.PageQuery,
    ),
)

HOOKS = (
    _get("list_hooks", "/hooks", s.Page[s.Hook], "Hooks by id", query=s.PageQuery),
    _post("create_hook", "/hooks", s.Data[s.Hook], "Make a hook", body=s.HookCreate, **_MAKES),
    _get("get_hook", "/hooks/{id}", s.Data[s.Hook], "One hook"),
    _update("update_hook", "/hooks/{id}", s.HookUpdate, s.Data[s.Hook], "Change a hook"),
    _delete("delete_hook", "/hooks/{id}", "Delete a hook"),
    _post(
        "receive_hook",
        "/hooks/{id}",
        s.Accepted,
        "Take somebody's webhook; the id is the hook's token, and the signature is checked",
        scope=None,
        body=object,
        status=202,
        conflicts=("agent is busy — retry later",),
        other_errors={401: "missing_signature, invalid_signature or stale_timestamp"},
    ),
)

ENDPOINTS = (
    _get(
        "list_endpoints",
        "/endpoints",
        s.Page[s.Endpoint],
        "Endpoints by id",
        scope="admin",  # a URL may hold a secret
        query=s.PageQuery,
    ),
    _post(
        "create_endpoint",
        "/endpoints",
        s.Data[s.EndpointMade],
        "Make an endpoint; the secret that it knows us by is shown this once",
        body=s.EndpointCreate,
        conflicts=(f"there are {ENDPOINTS_MAX} endpoints already",),
        **_MAKES,
    ),
    _get("get_endpoint", "/endpoints/{id}", s.Data[s.Endpoint], "One endpoint", scope="admin"),
    _update(
        "update_endpoint",
        "/endpoints/{id}",
        s.EndpointUpdate,
        s.Data[s.Endpoint],
        "Change an endpoint, pause it, or have it go on",
    ),
    _delete("delete_endpoint", "/endpoints/{id}", "Delete an endpoint with all that it is owed"),
    _post(
        "rotate_endpoint",
        "/endpoints/{id}/rotate",
        s.Data[s.EndpointMade],
        "Sign with a new secret as well as with the last one",
        **_MAKES,
    ),
    _post(
        "test_endpoint",
        "/endpoints/{id}/test",
        s.Data[s.Delivery],
        "Send an endpoint an event that nothing but this request is about",
        scope="admin",
        status=202,
        conflicts=("the endpoint is not enabled",),
        idempotent=True,
    ),
    _get(
        "list_deliveries",
        "/endpoints/{id}/deliveries",
        s.Page[s.Delivery],
        "What an endpoint is owed and was told, newest first",
        scope="admin",
        query=s.PageQuery,
    ),
    _post(
        "retry_delivery",
        "/deliveries/{id}/retry",
        s.Data[s.Delivery],
        "Owe a delivery again that has ended",
        scope="admin",
        status=202,
        idempotent=True,
    ),
)

KEYS = (
    _get("list_keys", "/api_keys", s.Page[s.Key], "API keys", scope="admin", query=s.PageQuery),
    _post(
        "create_key",
        "/api_keys",
        s.Data[s.KeyMade],
        "Make an API key: it is shown this once",
        body=s.KeyCreate,
        **_MAKES,
    ),
    _post(
        "rotate_key",
        "/api_keys/{id}/rotate",
        s.Data[s.KeyMade],
        "Make a successor of a key, which stays valid until it is revoked",
        **_MAKES,
    ),
    _delete("revoke_key", "/api_keys/{id}", "Revoke a key: its sockets are closed"),
)

_OF_SERVER: dict[str, Any] = {"scope": "admin", "operators": True}

NODES = (
    _get(
        "list_nodes",
        "/nodes",
        s.Page[s.Node],
        "The nodes that share the store",
        query=s.PageQuery,
        **_OF_SERVER,
    ),
    _get(
        "get_node",
        "/nodes/{node}",
        s.Data[s.Node],
        "One node, by its id or name",
        conflicts=(NODE_NAMES,),
        **_OF_SERVER,
    ),
    _post(
        "drain_node",
        "/nodes/{node}/drain",
        s.Data[s.Node],
        "Have a node, by its id or name, hand over its sessions and end",
        status=202,
        idempotent=True,
        conflicts=(NODE_NAMES,),
        **_OF_SERVER,
    ),
)

SERVER = (
    _post(
        "record_first_run",
        "/telemetry/first-run",
        s.Status,
        "Taken from clients that send it, and not kept",
        scope=None,
        body=s.FirstRun,
        status=200,
    ),
    Operation(
        id="health",
        methods=("GET",),
        path="/health",
        answer=s.Health,
        scope=None,
        summary="Whether the node lives",
    ),
    Operation(
        id="ready",
        methods=("GET",),
        path="/ready",
        answer=s.Health,
        scope=None,
        summary="Whether the node can serve",
        other_errors={503: "Not now: the store does not answer, or the node is leaving."},
    ),
    Operation(
        id="openapi",
        methods=("GET",),
        path="/openapi.json",
        answer=dict[str, Any],
        scope=None,
        summary="This document",
    ),
    Operation(
        id="docs",
        methods=("GET",),
        path="/docs",
        answer=str,
        media=(HTML,),
        scope=None,
        summary="This document, to be read",
    ),
)

OPERATIONS: tuple[Operation, ...] = (
    *AGENTS,
    *RUNS,
    *SESSIONS,
    *CONNECTED,
    *TRIGGERS,
    *GARDS,
    *HOOKS,
    *ENDPOINTS,
    *KEYS,
    *NODES,
    *SERVER,
)
BY_ID: Mapping[str, Operation] = {operation.id: operation for operation in OPERATIONS}
