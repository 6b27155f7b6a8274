"""Stages: what goes to the server in one statement, which is one round trip and one transaction.

A batch of operations becomes a few stages. The operations of a session stay in their order: what
comes after one of another kind is in a later stage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from perdure.adapters.stores.postgres.names import Key
from perdure.adapters.stores.postgres.operations import Operation
from perdure.core.errors import InvalidInput

Ask = Callable[..., Awaitable[list[Any]]]
Alone = list["Stage"]
"""Stages of one operation each, for what was refused together with something else."""

REQUESTS_MAX = 200
"""Operations in a stage: some are matched to each other one by one."""


class Stage:
    """Operations of one kind, at most one of each session."""

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self._keys: set[Any] = set()

    @classmethod
    def of(cls, *operations: Operation) -> Stage:
        """Return a stage with these operations."""
        stage = cls()
        for operation in operations:
            stage.add(operation)
        return stage

    def takes(self, operation: Operation) -> bool:
        """Say whether there is room for an operation."""
        return operation.key not in self._keys and len(self.operations) < REQUESTS_MAX

    def add(self, operation: Operation) -> None:
        """Take an operation in."""
        self.operations.append(operation)
        self._keys.add(operation.key)

    async def write(self, ask: Ask) -> Alone:
        """Carry it out, and note in each operation what came of it. Return what is to follow.

        Raises what the driver raises; then nothing was noted.
        """
        raise NotImplementedError

    def alone(self) -> Alone:
        """Return a stage for each operation."""
        return [type(self).of(one) for one in self.operations]

    def spoil(self, error: Exception) -> None:
        """Note that the server will not take the only operation there is."""
        for operation in self.operations:
            operation.fail(InvalidInput(f"PostgreSQL cannot hold it: {error}"))


def arrange(operations: list[Operation], kinds: Callable[[Operation], type[Stage]]) -> list[Stage]:
    """Return the stages of a batch: as few as keep every session's operations in order."""
    stages: list[Stage] = []
    latest: dict[Key, int] = {}
    for operation in operations:
        kind = kinds(operation)
        number = latest.get(operation.key, 0)
        while number < len(stages) and not (
            type(stages[number]) is kind and stages[number].takes(operation)
        ):
            number += 1
        if number == len(stages):
            stages.append(kind())
        stages[number].add(operation)
        latest[operation.key] = number
    return stages


def turned(rows: Sequence[tuple[Any, ...]], width: int) -> list[Sequence[Any]]:
    """Return the columns of some rows: an array for each parameter, empty if there are none."""
    return [*zip(*rows, strict=True)] or [()] * width
