"""The writer of steps: whatever was decided on a step that is refused is refused with it."""

from __future__ import annotations

from contextlib import suppress

from perdure.adapters.redis.realm import Realm
from perdure.adapters.redis.script import Script
from perdure.adapters.redis.writer import Request, Writer
from perdure.adapters.stores.redis.operations import Commit
from perdure.core.errors import StoreError
from perdure.core.ids import SessionId
from perdure.ports.session_store import Token

ClaimKey = tuple[SessionId, Token]


class StepWriter(Writer[Commit | Request]):
    """Executes operations on sessions in the order in which they are submitted.

    Steps of a claim that were submitted before its owner was told of a refusal are refused with it.
    """

    def __init__(self, realm: Realm, script: Script) -> None:
        super().__init__(realm, script)
        self._untold: dict[ClaimKey, list[StoreError]] = {}

    def submit(self, operation: Commit | Request) -> None:
        """Queue an operation; it is told on the event loop what became of it."""
        if isinstance(operation, Commit) and operation.claim in self._untold:
            self._refuse(operation, self._untold[operation.claim][0])
        super().submit(operation)

    def _executed(self, batch: list[Commit | Request]) -> None:
        """Refuse the steps in the queue that were decided on one that is refused."""
        for operation in batch:
            if isinstance(operation, Commit) and operation.error is not None:
                errors = self._untold.setdefault(operation.claim, [])
                if operation.error not in errors:
                    errors.append(operation.error)
        if self._untold:
            for operation in self._queue:
                if isinstance(operation, Commit) and operation.error is None:
                    earlier = self._untold.get(operation.claim)
                    if earlier is not None:
                        self._refuse(operation, earlier[0])

    def _refuse(self, commit: Commit, earlier: StoreError) -> None:
        commit.error = type(earlier)(str(earlier))
        self._untold[commit.claim].append(commit.error)

    def _tell_one(self, operation: Commit | Request) -> None:
        if isinstance(operation, Commit) and operation.error is not None:
            with suppress(KeyError):
                self._untold[operation.claim].pop()
                if not self._untold[operation.claim]:
                    del self._untold[operation.claim]
        operation.tell()
