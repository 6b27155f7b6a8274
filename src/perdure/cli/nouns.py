"""What a server keeps, noun by noun: the commands are rows of these tables."""

from __future__ import annotations

from perdure.cli.send import sender
from perdure.cli.verbs import Verb, noun

agents = noun(
    "agents",
    "Define a server's agents, and send to them.",
    (
        Verb(
            "list",
            "list_agents",
            columns=("id", "name", "status", "model", "max_steps", "purpose"),
        ),
        Verb("show", "get_agent", "support"),
        Verb("create", "create_agent", "support --system-prompt 'You help.' --model my-model"),
        Verb("edit", "update_agent", "support --max-steps 20"),
        Verb("archive", "archive_agent", "support", done="agent {id} is archived"),
    ),
)

agents.add_command(sender('perdure agents send support "Refund order 42"'))

triggers = noun(
    "triggers",
    "Messages that a server's clock sends.",
    (
        Verb(
            "list",
            "list_triggers",
            columns=("id", "name", "agent", "cron", "time_zone", "enabled", "last_fired_at"),
        ),
        Verb("show", "get_trigger", "3"),
        Verb(
            "create",
            "create_trigger",
            "morning --agent support --cron '0 9 * * 1-5' --message 'What is new?'",
        ),
        Verb("edit", "update_trigger", "3 --cron '30 8 * * 1-5'"),
        Verb(
            "pause",
            "update_trigger",
            "3",
            gives={"enabled": False},
            done="trigger {id} is paused",
            help="Let a trigger send nothing until it is resumed",
        ),
        Verb(
            "resume",
            "update_trigger",
            "3",
            gives={"enabled": True},
            done="trigger {id} is at work",
            help="Let a paused trigger send again",
        ),
        Verb("fire", "fire_trigger", "3", done="run {run_id}"),
        Verb("delete", "delete_trigger", "3", done="trigger {id} is deleted"),
    ),
)

hooks = noun(
    "hooks",
    "Addresses of a server that take webhooks.",
    (
        Verb("list", "list_hooks", columns=("id", "name", "agent", "signature_type", "enabled")),
        Verb("show", "get_hook", "2"),
        Verb(
            "create",
            "create_hook",
            "pushes --agent support --signature-type github --signing-secret -",
            help="Make a hook; its token is shown this once",
        ),
        Verb("edit", "update_hook", "2 --message-path issue.body"),
        Verb(
            "pause",
            "update_hook",
            "2",
            gives={"enabled": False},
            done="hook {id} takes nothing",
            help="Let a hook take nothing until it is resumed",
        ),
        Verb(
            "resume",
            "update_hook",
            "2",
            gives={"enabled": True},
            done="hook {id} is open",
            help="Let a paused hook take again what is posted",
        ),
        Verb("delete", "delete_hook", "2", done="hook {id} is deleted"),
    ),
)

endpoints = noun(
    "endpoints",
    "Addresses that a server tells what runs do.",
    (
        Verb(
            "list",
            "list_endpoints",
            columns=("id", "name", "url", "events", "agent", "enabled", "failures"),
        ),
        Verb("show", "get_endpoint", "6"),
        Verb(
            "create",
            "create_endpoint",
            "audit --to https://audit.example.com/runs --events run.failed",
            help="Make an endpoint; the secret of its signatures is shown this once",
        ),
        Verb("edit", "update_endpoint", "6 --to https://audit.example.com/all"),
        Verb(
            "pause",
            "update_endpoint",
            "6",
            gives={"enabled": False},
            done="endpoint {id} is told nothing until it is resumed",
            help="Keep for later what an endpoint is owed",
        ),
        Verb(
            "resume",
            "update_endpoint",
            "6",
            gives={"enabled": True},
            done="endpoint {id} is told again",
            help="Let an endpoint have what it is owed, and forget its failures",
        ),
        Verb("test", "test_endpoint", "6"),
        Verb("rotate", "rotate_endpoint", "6"),
        Verb("delete", "delete_endpoint", "6", done="endpoint {id} is deleted"),
        Verb(
            "deliveries",
            "list_deliveries",
            "6 --limit 20",
            columns=("id", "event", "status", "attempts", "next_at", "last_error"),
        ),
        Verb("retry", "retry_delivery", "17"),
    ),
)

gards = noun(
    "gards",
    "Execution contexts, each with one worker.",
    (
        Verb("list", "list_gards", columns=("id", "name", "status", "template", "inserted_at")),
        Verb("show", "get_gard", "4"),
        Verb("create", "create_gard", "--name sandbox"),
        Verb("edit", "update_gard", "4 --name workshop"),
        Verb("destroy", "destroy_gard", "4", done="gard {id} is destroyed"),
    ),
)

keys = noun(
    "keys",
    "API keys of a server: who may do what.",
    (
        Verb(
            "list",
            "list_keys",
            columns=("id", "name", "scope", "gard_id", "expires_at", "last_used_at", "revoked_at"),
        ),
        Verb(
            "create",
            "create_key",
            "--name laptop --scope worker",
            help="Make an API key; it is shown this once, and is a worker's if no scope is given",
        ),
        Verb("rotate", "rotate_key", "5"),
        Verb("revoke", "revoke_key", "5", done="key {id} is revoked"),
    ),
)

tools = noun(
    "tools",
    "What agents of a server can use.",
    (Verb("list", "list_tools", columns=("name", "source", "side_effect", "description")),),
)

workers = noun(
    "workers",
    "Who executes the calls of a server.",
    (
        Verb(
            "list",
            "list_workers",
            columns=("worker_id", "capabilities", "tool_count", "gard", "draining"),
        ),
    ),
)

nodes = noun(
    "nodes",
    "Servers that share one store.",
    (
        Verb(
            "list",
            "list_nodes",
            columns=("id", "name", "url", "version", "sessions", "workers", "draining", "seen_at"),
        ),
        Verb("show", "get_node", "eu-1"),
        Verb("drain", "drain_node", "eu-1", done="node {id} hands over what it has, and ends"),
    ),
)

NOUNS = (agents, triggers, hooks, endpoints, gards, keys, tools, workers, nodes)
