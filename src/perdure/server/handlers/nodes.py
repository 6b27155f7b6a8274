"""Nodes: which servers there are, and how one is told to hand over what it has."""

from __future__ import annotations

from perdure.api import shapes
from perdure.api.errors import Rejected
from perdure.api.shapes import timestamp
from perdure.ports.cluster import NodeCard
from perdure.server.desk import Answer, Desk, Request
from perdure.server.handlers.lists import part


async def list_nodes(desk: Desk, request: Request) -> Answer:
    """The nodes that announced themselves lately."""
    shown = [_shown(card) for card in desk.servers.known()]
    return Answer(part(shown, request.query, lambda one: (one.id,), tuple[str]))


async def get_node(desk: Desk, request: Request) -> Answer:
    """One of them, by its id or name."""
    return Answer(shapes.Data(_shown(_node(desk, request))))


async def drain_node(desk: Desk, request: Request) -> Answer:
    """Have a node hand over its sessions and end."""
    card = _node(desk, request)
    await desk.servers.drain(card.id)
    return Answer(shapes.Data(_shown(card)), 202)


def _node(desk: Desk, request: Request) -> NodeCard:
    name = request.path["node"]
    cards = desk.servers.known()
    found = [one for one in cards if one.id == name] or [one for one in cards if one.name == name]
    if not found:
        raise Rejected(404, "not found")
    if len(found) > 1:
        ids = ", ".join(one.id for one in found)
        raise Rejected(409, f"several nodes have this name: say which one by its id, of {ids}")
    return found[0]


def _shown(card: NodeCard) -> shapes.Node:
    return shapes.Node(
        id=card.id,
        name=card.name,
        url=card.url,
        version=card.version,
        generation=card.generation,
        sessions=card.sessions,
        workers=card.workers,
        draining=card.draining,
        started_at=timestamp(card.started_at),
        seen_at=timestamp(card.seen_at),
    )
