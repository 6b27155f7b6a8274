"""The bus: small messages between nodes. They are hints: what is lost costs time and nothing else.

A message is a JSON object whose `type` says what it is; a type that a node does not know is a
newer one's, and is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from perdure.core.ids import SessionId
from perdure.ports.cluster import Cluster
from perdure.ports.telemetry import Telemetry


class Message(msgspec.Struct, frozen=True, gc=False, tag_field="type"):
    """What nodes tell each other."""


class Knock(Message, frozen=True, tag="knock"):
    """Something was accepted for a session that you run; `node` waits for what comes of it."""

    session: SessionId
    node: str


class Follow(Message, frozen=True, tag="follow"):
    """Somebody at `node` waits for news of these sessions, and of all of these agents' sessions.

    An agent is named with its tenant before it.
    """

    node: str
    sessions: tuple[SessionId, ...] = ()
    agents: tuple[tuple[str, str], ...] = ()


class News(Message, frozen=True, tag="news"):
    """These sessions have new durable facts."""

    sessions: tuple[SessionId, ...]


class Pieces(Message, frozen=True, tag="pieces"):
    """Text that a model is writing in a run; once `relayed` by who runs it, it goes no further."""

    session: SessionId
    run: str
    text: str
    relayed: bool = False


class Released(Message, frozen=True, tag="released"):
    """A node that drains let sessions go that may be due: look for them now."""

    node: str


class _Tag(msgspec.Struct):
    type: str


M = TypeVar("M", bound=Message)
_encode = msgspec.json.Encoder().encode
_tag_in = msgspec.json.Decoder(_Tag).decode


class Bus:
    """Sends messages, and gives those that arrive to whoever asked for their kind."""

    def __init__(self, cluster: Cluster | None, telemetry: Telemetry) -> None:
        self._cluster = cluster
        self._telemetry = telemetry
        self._hearers: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], None]]] = {}

    def on(self, kind: type[M], hearer: Callable[[M], None]) -> None:
        """Call `hearer` with every message of a kind."""
        decoder = msgspec.json.Decoder(kind)
        self._hearers[str(kind.__struct_config__.tag)] = (decoder.decode, hearer)

    def send(self, node: str | None, message: Message) -> None:
        """Send a message to a node, or to all others."""
        if self._cluster is not None:
            self._cluster.send(node, _encode(message))

    def hear(self, body: bytes) -> None:
        """Act on a message that arrived. What cannot be read is dropped."""
        try:
            known = self._hearers.get(_tag_in(body).type)
            if known is None:
                return
            decode, hearer = known
            message = decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._telemetry.emit("message.dropped", error=str(error))
            return
        hearer(message)
