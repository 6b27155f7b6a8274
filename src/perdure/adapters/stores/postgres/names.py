"""What a session is called in the tables: its tenant, and a hash of its names."""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from uuid import UUID

from perdure.adapters.postgres.driver import uuid_maker
from perdure.core.ids import SessionId

KEY_BYTES = 16


class Key(NamedTuple):
    """The primary key of a session."""

    tenant: str
    id: UUID


def storable(*names: str) -> bool:
    """Say whether PostgreSQL can hold these names: it takes any Unicode but the character NUL."""
    try:
        return b"\0" not in "".join(names).encode()
    except UnicodeEncodeError:
        return False


class Keys:
    """The keys of sessions. Those that are claimed here are remembered."""

    def __init__(self) -> None:
        self._known: dict[SessionId, Key] = {}
        self._uuid = uuid_maker()

    def find(self, session: SessionId) -> Key | None:
        """Return the key of a session; None if no session can have these names."""
        return self._known.get(session) or self._make(session)

    def remember(self, session: SessionId, key: Key) -> None:
        """Keep the key of a session that will be written often."""
        self._known[session] = key

    def forget(self, session: SessionId) -> None:
        """Drop the key of a session that was given up."""
        self._known.pop(session, None)

    def _make(self, session: SessionId) -> Key | None:
        # A name cannot hold the character that parts them here.
        if not storable(*session):
            return None
        digest = hashlib.sha256("\0".join(session).encode()).digest()
        return Key(session.tenant, self._uuid(digest[:KEY_BYTES]))
