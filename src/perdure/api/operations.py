"""Every operation of the REST API, as one table: the router, the client and the document read it.

An operation's `id` names its handler. Its `errors` are what it may answer besides its own answer;
most follow from what it takes: a key, ids in the path, parameters, a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.api import shapes as s
from perdure.api.limits import ENDPOINTS_MAX, STANDING_MAX
from perdure.api.operation import (
    EVENT_STREAM,
    HTML,
    JSON,
    PREFIX,
    Method,
    Operation,
    delete,
    get,
    post,
    update,
)

__all__ = [
    "BY_ID",
    "EVENT_STREAM",
    "HTML",
    "JSON",
    "OPERATIONS",
    "PREFIX",
    "Method",
    "Operation",
]

BUSY = "agent is busy"
NODE_NAMES = "several nodes have this name: say which one by its id"
_MAKES: dict[str, Any] = {"scope": "admin", "status": 201, "idempotent": True}
_STARTS: dict[str, Any] = {"status": 202, "idempotent": True}

AGENTS = (
    get("list_agents", "/agents", s.Page[s.Agent], "All agents, newest first", query=s.PageQuery),
    post("create_agent", "/agents", s.Data[s.Agent], "Make an agent", body=s.AgentCreate, **_MAKES),
    get("get_agent", "/agents/{id}", s.Data[s.Agent], "One agent, archived or not"),
    update("update_agent", "/agents/{id}", s.AgentUpdate, s.Data[s.Agent], "Change an agent"),
    delete(
        "archive_agent",
        "/agents/{id}",
        "Archive an agent: its name is free again",
        query=s.ForceQuery,
        conflicts=("agent has an active run — pass force=true to archive anyway",),
    ),
    post(
        "send_message",
        "/agents/{id}/messages",
        s.Accepted,
        "Send a message: it starts a run, joins or ends one, or answers its question",
        body=s.MessageCreate,
        conflicts=(BUSY,),
        refusals=("missing required field: content",),
        **_STARTS,
    ),
    get(
        "agent_status",
        "/agents/{id}/status",
        s.Data[s.AgentStanding],
        "How the conversation `default` stands",
    ),
    get(
        "list_agent_runs",
        "/agents/{id}/runs",
        s.Page[s.Run],
        "An agent's runs, newest first",
        query=s.PageQuery,
    ),
    get(
        "list_conversations",
        "/agents/{id}/conversations",
        s.Page[s.Conversation],
        "An agent's conversations, the latest first",
        query=s.PageQuery,
    ),
    get(
        "get_conversation",
        "/agents/{id}/conversations/{key}",
        s.Data[s.Conversation],
        "One conversation",
    ),
    delete(
        "delete_conversation",
        "/agents/{id}/conversations/{key}",
        "Delete a conversation: the key begins anew",
        scope="run",
        status=200,
        answer=s.Status,
    ),
    get(
        "agent_usage",
        "/agents/{id}/usage",
        s.Data[s.Usage],
        "What an agent has used, and what it cost",
        query=s.UsageQuery,
    ),
)

RUNS = (
    get("list_runs", "/runs", s.Page[s.Run], "Runs, newest first", query=s.RunQuery),
    get("get_run", "/runs/{id}", s.Data[s.Run], "One run"),
    get(
        "wait_for_run",
        "/runs/{id}/wait",
        s.Data[s.Run],
        "One run, once it has ended or waits for somebody, or when the time is over",
        query=s.WaitQuery,
    ),
    get(
        "list_events",
        "/runs/{id}/events",
        s.Page[s.Event],
        "A run's events in order; as a stream, which goes on after `Last-Event-ID`",
        query=s.EventQuery,
        media=(JSON, EVENT_STREAM),
    ),
    get("get_summary", "/runs/{id}/summary", s.Data[s.Summary], "A run at a glance"),
    post(
        "retry_run",
        "/runs/{id}/retry",
        s.Accepted,
        "Go on with a run that failed, or send a completed one's message in a fresh conversation",
        conflicts=("run is still in progress", BUSY),
        refusals=("run has no user_message to retry",),
        **_STARTS,
    ),
    post(
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
    post(
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
    post(
        "resolve_call",
        "/runs/{id}/resolve",
        s.Accepted,
        "Say what became of a call whose outcome is unknown",
        body=s.ResolveCreate,
        status=202,
        conflicts=("call is not waiting for a decision",),
        idempotent=True,
    ),
    post(
        "decide_approval",
        "/runs/{id}/decide",
        s.Accepted,
        "Approve or deny a call that waits for it, change its arguments, or have others asked",
        body=s.DecisionCreate,
        status=202,
        conflicts=(
            "call was approved by BY at TIME",
            "the arguments have changed",
            "the policy has changed",
            "BY has none of the roles",
        ),
        idempotent=True,
    ),
    post(
        "raise_budget",
        "/runs/{id}/budget",
        s.Accepted,
        "Add to what a run may spend, or give no more to what waits for it",
        body=s.RaiseCreate,
        status=202,
        conflicts=(
            "run is not in progress",
            "run has no budget",
            "the budget has no limit of that",
            "nothing waits for more",
            "BY has none of the roles",
        ),
        idempotent=True,
    ),
    post(
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

WAITS = (
    get(
        "list_waits",
        "/waits",
        s.Page[s.Waiting],
        "What waits for people: questions, decisions and approvals, the newest run first",
        query=s.WaitsQuery,
    ),
)

STANDING = (
    get(
        "list_standing_approvals",
        "/standing_approvals",
        s.Page[s.StandingApproval],
        "What people approved ahead, by id",
        query=s.PageQuery,
    ),
    post(
        "create_standing_approval",
        "/standing_approvals",
        s.Data[s.StandingApproval],
        "Approve ahead what is like a call that waits for approval",
        body=s.StandingApprovalCreate,
        status=201,
        conflicts=(
            "call does not wait for approval",
            "it would not let the call through, and why",
            f"there are {STANDING_MAX} standing approvals already",
        ),
        idempotent=True,
    ),
    delete(
        "revoke_standing_approval",
        "/standing_approvals/{id}",
        "Have people asked again, from the next call on",
        scope="run",
    ),
)

SESSIONS = (
    get(
        "list_sessions",
        "/sessions",
        s.Page[s.Session],
        "Sessions of all agents, the latest first",
        query=s.SessionQuery,
    ),
    get(
        "get_session",
        "/sessions/{id}",
        s.Data[s.SessionWhole],
        "One session with its messages and runs",
    ),
    update(
        "update_session",
        "/sessions/{id}",
        s.SessionUpdate,
        s.Data[s.Session],
        "Name a session",
        scope="run",
    ),
    delete(
        "archive_session",
        "/sessions/{id}",
        "Archive a session",
        scope="run",
        query=s.ForceQuery,
        conflicts=("session has an active run — pass force=true to archive anyway",),
    ),
    post("restore_session", "/sessions/{id}/restore", s.Data[s.Session], "Take a session back"),
    post(
        "release_session",
        "/sessions/{id}/release",
        s.Data[s.Session],
        "Let a session go on that is in quarantine: its host died too often while it ran it",
        conflicts=("session is not in quarantine",),
    ),
)

CONNECTED = (
    get("list_tools", "/tools", s.Tools, "The tools that agents may use now"),
    get(
        "list_workers",
        "/workers",
        s.Page[s.Worker],
        "The workers that are connected",
        query=s.PageQuery,
    ),
    get(
        "tenant_usage",
        "/usage",
        s.Data[s.Usage],
        "What all agents have used, and what it cost",
        query=s.UsageQuery,
    ),
)

TRIGGERS = (
    get("list_triggers", "/triggers", s.Page[s.Trigger], "Triggers by id", query=s.TriggerQuery),
    post(
        "create_trigger",
        "/triggers",
        s.Data[s.Trigger],
        "Make a trigger",
        body=s.TriggerCreate,
        **_MAKES,
    ),
    get("get_trigger", "/triggers/{id}", s.Data[s.Trigger], "One trigger"),
    update(
        "update_trigger", "/triggers/{id}", s.TriggerUpdate, s.Data[s.Trigger], "Change a trigger"
    ),
    delete("delete_trigger", "/triggers/{id}", "Delete a trigger"),
    post(
        "fire_trigger",
        "/triggers/{id}/fire",
        s.Accepted,
        "Send a trigger's message now",
        conflicts=(BUSY,),
        **_STARTS,
    ),
)

GARDS = (
    get("list_gards", "/gards", s.Page[s.Gard], "Gards by id, also destroyed", query=s.PageQuery),
    post(
        "create_gard",
        "/gards",
        s.Data[s.GardMade],
        "Make a gard; its claim token is shown this once",
        body=s.GardCreate,
        **_MAKES,
    ),
    get("get_gard", "/gards/{id}", s.Data[s.GardWhole], "One gard with its ports"),
    update("update_gard", "/gards/{id}", s.GardUpdate, s.Data[s.Gard], "Change a gard"),
    delete(
        "destroy_gard",
        "/gards/{id}",
        "Destroy a gard: its worker is sent away",
        query=s.ForceQuery,
        conflicts=("gard has an active run — pass force=true to destroy anyway",),
    ),
    get(
        "list_ports",
        "/gards/{id}/ports",
        s.Page[s.Port],
        "A gard's ports, by number",
        query=s.PageQuery,
    ),
)

HOOKS = (
    get("list_hooks", "/hooks", s.Page[s.Hook], "Hooks by id", query=s.PageQuery),
    post("create_hook", "/hooks", s.Data[s.Hook], "Make a hook", body=s.HookCreate, **_MAKES),
    get("get_hook", "/hooks/{id}", s.Data[s.Hook], "One hook"),
    update("update_hook", "/hooks/{id}", s.HookUpdate, s.Data[s.Hook], "Change a hook"),
    delete("delete_hook", "/hooks/{id}", "Delete a hook"),
    post(
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
    get(
        "list_endpoints",
        "/endpoints",
        s.Page[s.Endpoint],
        "Endpoints by id",
        scope="admin",  # a URL may hold a secret
        query=s.PageQuery,
    ),
    post(
        "create_endpoint",
        "/endpoints",
        s.Data[s.EndpointMade],
        "Make an endpoint; the secret that it knows us by is shown this once",
        body=s.EndpointCreate,
        conflicts=(f"there are {ENDPOINTS_MAX} endpoints already",),
        **_MAKES,
    ),
    get("get_endpoint", "/endpoints/{id}", s.Data[s.Endpoint], "One endpoint", scope="admin"),
    update(
        "update_endpoint",
        "/endpoints/{id}",
        s.EndpointUpdate,
        s.Data[s.Endpoint],
        "Change an endpoint, pause it, or have it go on",
    ),
    delete("delete_endpoint", "/endpoints/{id}", "Delete an endpoint with all that it is owed"),
    post(
        "rotate_endpoint",
        "/endpoints/{id}/rotate",
        s.Data[s.EndpointMade],
        "Sign with a new secret as well as with the last one",
        **_MAKES,
    ),
    post(
        "test_endpoint",
        "/endpoints/{id}/test",
        s.Data[s.Delivery],
        "Send an endpoint an event that nothing but this request is about",
        scope="admin",
        status=202,
        conflicts=("the endpoint is not enabled",),
        idempotent=True,
    ),
    get(
        "list_deliveries",
        "/endpoints/{id}/deliveries",
        s.Page[s.Delivery],
        "What an endpoint is owed and was told, newest first",
        scope="admin",
        query=s.PageQuery,
    ),
    post(
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
    get("list_keys", "/api_keys", s.Page[s.Key], "API keys", scope="admin", query=s.PageQuery),
    post(
        "create_key",
        "/api_keys",
        s.Data[s.KeyMade],
        "Make an API key: it is shown this once",
        body=s.KeyCreate,
        **_MAKES,
    ),
    post(
        "rotate_key",
        "/api_keys/{id}/rotate",
        s.Data[s.KeyMade],
        "Make a successor of a key, which stays valid until it is revoked",
        **_MAKES,
    ),
    delete("revoke_key", "/api_keys/{id}", "Revoke a key: its sockets are closed"),
)

_OF_SERVER: dict[str, Any] = {"scope": "admin", "operators": True}

POLICY = (
    get("get_policy", "/policy", s.Data[s.Policy], "The rules by which calls are judged"),
    Operation(
        id="update_policy",
        methods=("PUT",),
        path=f"{PREFIX}/policy",
        body=s.PolicyUpdate,
        answer=s.Data[s.Policy],
        summary="Put other rules in force, from the next call on",
        scope="admin",
    ),
    delete("delete_policy", "/policy", "Have no rules but what agents are granted"),
)

NODES = (
    get(
        "list_nodes",
        "/nodes",
        s.Page[s.Node],
        "The nodes that share the store",
        query=s.PageQuery,
        **_OF_SERVER,
    ),
    get(
        "get_node",
        "/nodes/{node}",
        s.Data[s.Node],
        "One node, by its id or name",
        conflicts=(NODE_NAMES,),
        **_OF_SERVER,
    ),
    post(
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
    post(
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
    *WAITS,
    *STANDING,
    *SESSIONS,
    *CONNECTED,
    *TRIGGERS,
    *GARDS,
    *HOOKS,
    *ENDPOINTS,
    *KEYS,
    *POLICY,
    *NODES,
    *SERVER,
)
BY_ID: Mapping[str, Operation] = {operation.id: operation for operation in OPERATIONS}
