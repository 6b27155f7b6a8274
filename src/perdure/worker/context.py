"""What a tool is told about the call it carries out."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from perdure.core.errors import InvalidInput
from perdure.core.ids import SessionId
from perdure.ports.credentials import Secret


class ToolContext(msgspec.Struct, frozen=True, gc=False):
    """The call a tool carries out; a worker fills parameters of this type with it.

    `key` is the idempotency key: every attempt at this call, on every node, presents the same one,
    and no other call does. Hand it to whoever can refuse a second payment. `attempt` counts from 1.
    `timeout_ms` is how long this attempt may take. Only `key` is required, so that a unit test can
    make a context, with `credentials={"stripe": Secret("sk-for-tests")}` if the tool has any.
    """

    key: str
    session: SessionId = SessionId("default", "", "")
    run: str = ""
    call: str = ""
    attempt: int = 1
    agent: str = ""
    timeout_ms: int = 300_000
    credentials: Mapping[str, Secret] = {}

    def credential(self, name: str) -> str:
        """Return a secret that the tool declared, as it was resolved for this attempt.

        Raises `InvalidInput` for a name that the tool did not declare.
        """
        if name not in self.credentials:
            raise InvalidInput(
                f"the tool declares no credential {name!r}: say @tool(credentials=[{name!r}]), and "
                "in its agent where it is: credentials={...}"
            )
        return self.credentials[name].reveal()
