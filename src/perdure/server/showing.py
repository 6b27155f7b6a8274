"""Entries of the catalog as the API shows them. What is secret has no way out from here."""

from __future__ import annotations

from typing import Any

from perdure.api import shapes
from perdure.api.definition import compaction_policy, context_strategy, context_window
from perdure.api.shapes import timestamp, timestamp_or_none
from perdure.ports import entries


def agent(entry: entries.Agent) -> shapes.Agent:
    """Return an agent as the API shows it."""
    config = entry.model_config
    return shapes.Agent(
        id=entry.id,
        name=entry.name,
        purpose=entry.purpose,
        status=entry.status,
        system_prompt=entry.system_prompt,
        model=entry.model,
        context_strategy=context_strategy(config),
        context_window=context_window(config),
        context_policy=compaction_policy(config),
        max_steps=entry.max_steps,
        archived_at=timestamp_or_none(entry.archived_at),
        inserted_at=timestamp(entry.inserted_at),
        updated_at=timestamp(entry.updated_at),
    )


def trigger(entry: entries.Trigger) -> shapes.Trigger:
    """Return a trigger as the API shows it."""
    return shapes.Trigger(
        id=entry.id,
        agent_id=entry.agent_id,
        name=entry.name,
        cron=entry.cron,
        message=entry.message,
        conversation_key=entry.conversation_key,
        enabled=entry.enabled,
        time_zone=entry.timezone,
        catch_up=entry.catch_up == "once",
        last_fired_at=timestamp_or_none(entry.last_fired_at),
        inserted_at=timestamp(entry.inserted_at),
        updated_at=timestamp(entry.updated_at),
    )


def gard(entry: entries.Gard) -> dict[str, Any]:
    """Return the fields of a gard as the API shows them."""
    return {
        "id": entry.id,
        "name": entry.name,
        "status": entry.status,
        "template": entry.template,
        "metadata": entry.metadata,
        "inserted_at": timestamp(entry.inserted_at),
        "updated_at": timestamp(entry.updated_at),
    }


def port(entry: entries.Port) -> shapes.Port:
    """Return a gard's port as the API shows it."""
    return shapes.Port(
        id=entry.id,
        internal_port=entry.internal_port,
        url=entry.url,
        name=entry.name,
        protocol=entry.protocol,
    )
