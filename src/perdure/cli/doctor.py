"""`perdure doctor`: is everything here that a durable agent needs?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping
from typing import Any

import click

from perdure.bootstrap import Agent, is_shared, sqlite_path, sqlite_version, store_facts
from perdure.cli.common import command_body, json_option, store_option
from perdure.cli.output import Output, plain
from perdure.core.errors import PerdureError

KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
EXTRAS = {
    "models": "pydantic_ai",
    "postgres": "asyncpg",
    "redis": "redis",
    "nats": "nats",
    "policy": "cedarpy",
    "prove": "z3",
}


@click.command(epilog="Example: perdure doctor --json")
@store_option
@json_option
@command_body
async def doctor(store: str, as_json: bool) -> int:
    """Check this machine, the store, the extras and the keys; exit with 1 if one is wrong."""
    output = Output(as_json)
    checks = [
        _check("python", True, platform.python_version()),
        _check("perdure", True, importlib.metadata.version("perdure")),
        _check("sqlite", True, sqlite_version()),
        await _store(store),
        *(_extra(name, module) for name, module in EXTRAS.items()),
        *(_key(provider, variable, os.environ) for provider, variable in KEYS.items()),
    ]
    for check in checks:
        mark = {True: "ok  ", False: "BAD ", None: "-   "}[check["ok"]]
        output.record(check, f"{mark}  {check['check']:<10} {plain(check['found'])}")
    return 1 if any(check["ok"] is False for check in checks) else 0


def missing_model(agent: Agent, environment: Mapping[str, str]) -> str | None:
    """Return what has to be set before a real model can be asked; None if it seems to be there."""
    if not isinstance(agent.model, str):
        return (
            f"{agent.name}: its file plays the model. For a real one, set {KEYS['anthropic']} and, "
            "if the file reads it, PERDURE_MODEL=anthropic:claude-sonnet-5"
        )
    if "model" in agent.spec.credentials:
        return None
    provider = agent.model.partition(":")[0]
    variable = KEYS.get(provider)
    ways = (variable, *(f"{provider.upper()}_{end}" for end in ("AUTH_TOKEN", "BASE_URL")))
    if variable is None or any(environment.get(way) for way in ways if way):
        return None
    return f"{agent.name}: set {variable} to ask {agent.model}"


def _check(name: str, ok: bool | None, found: Any) -> dict[str, Any]:
    return {"check": name, "ok": ok, "found": found}


async def _store(store: str) -> dict[str, Any]:
    try:
        path = sqlite_path(store)
        if path is None and not is_shared(store):
            return _check("store", None, "in memory: nothing outlives the process")
        if path is not None and not path.exists():
            return _check("store", None, f"{path} does not exist yet; the first run makes it")
        facts = await store_facts(store)
    except PerdureError as error:
        return _check("store", False, str(error))
    return _check("store", True, ", ".join(f"{name} {value}" for name, value in facts.items()))


def _extra(name: str, module: str) -> dict[str, Any]:
    if importlib.util.find_spec(module) is not None:
        return _check(f"extra {name}", True, "installed")
    return _check(f"extra {name}", None, f"not installed: pip install 'perdure[{name}]'")


def _key(provider: str, variable: str, environment: Mapping[str, str]) -> dict[str, Any]:
    found = "is set" if environment.get(variable) else "is not set"
    return _check(provider, True if environment.get(variable) else None, f"{variable} {found}")
