"""Step commits of many sessions in one statement.

Each is guarded by the update of its session's row, which compares token and version. What is
refused is left out, and takes nothing else with it. Steps of one claim that follow each other are
written as if they were one; if that is refused, each is written by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from perdure.adapters.stores.postgres import statements
from perdure.adapters.stores.postgres.names import Key
from perdure.adapters.stores.postgres.operations import Commit, Operation
from perdure.adapters.stores.postgres.stages import Alone, Ask, Stage, turned
from perdure.core.errors import Conflict, Fenced, StoreError
from perdure.core.runs import RunRow
from perdure.ports.session_store import StepCommit

NEVER = -1
"""As many consumed entries as no session has: a step that is wrong in itself is not written."""

Rows = list[tuple[Any, ...]]

_encode_row = msgspec.json.Encoder().encode


class Commits(Stage):
    """Steps of many sessions, in groups: those of one claim that follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[Key, list[Commit]] = {}

    def takes(self, operation: Operation) -> bool:
        """Say whether a step is of another session, or follows what is there of its own."""
        assert isinstance(operation, Commit)
        group = self._groups.get(operation.key)
        if group is None:
            return True
        last, step = group[-1].step, operation.step
        return step.expected == last.expected + len(last.records) and step.token == last.token

    def add(self, operation: Operation) -> None:
        """Take a step in."""
        assert isinstance(operation, Commit)
        self.operations.append(operation)
        group = self._groups.get(operation.key)
        if group is None:
            self._groups[operation.key] = [operation]
        else:
            group.append(operation)

    async def write(self, ask: Ask) -> Alone:
        """Write all steps whose guards hold, and find out about each of the others."""
        # Whoever locks several rows does so in the order of their keys: nobody waits in a circle.
        groups = sorted(self._groups.items())
        steps = [(key, [operation.step for operation in group]) for key, group in groups]
        [(held,)] = await ask(*statement(steps))
        if held is None:
            return []
        written = set(held)
        again: Alone = []
        for key, group in groups:
            if key.id in written:
                continue
            if len(group) > 1:
                again += [Commits.of(operation) for operation in group]
            else:
                group[0].error = await _why_refused(ask, group[0])
        return again

    def spoil(self, error: Exception) -> None:
        """Note that the server will not take the only step there is."""
        for operation in self.operations:
            operation.fail(Conflict(f"it cannot be stored: {error}"))


def statement(groups: Sequence[tuple[Key, list[StepCommit]]]) -> tuple[Any, ...]:
    """Return the statement that writes some steps, and its values: a list for each parameter."""
    steps: Rows = []
    events: Rows = []
    consumed: Rows = []
    rows: Rows = []
    snapshots: Rows = []
    blobs: Rows = []
    for key, group in groups:
        tenant, number = key
        first, last = group[0], group[-1]
        version, head, generation, snapshot = first.expected, None, 0, None
        follows, changed = True, False
        taken: list[str] = []
        for step in group:
            for seq, body, head in step.records:
                version += 1
                follows = follows and seq == version
                events.append((tenant, number, seq, body, head))
            generation = max(generation, step.generation)
            if step.consumed:
                taken += step.consumed
                refusals = dict(step.refusals)
                consumed += [(tenant, number, one, refusals.get(one)) for one in step.consumed]
            if step.snapshot is not None:
                snapshot = (version, step.snapshot)
            if step.blobs:
                blobs += [(number, *blob) for blob in step.blobs]
            if step.rows:
                changed = True
        wrong = not follows or len(set(taken)) < len(taken)
        used = NEVER if wrong else len(taken)
        guard = (tenant, number, *first.token, first.expected)
        steps.append((*guard, version, head, used, last.postponed, last.wake_at, generation))
        if snapshot is not None:
            snapshots.append((tenant, number, *snapshot))
        if changed:
            rows += _latest_rows(number, group)
    records = (*turned(steps, 11), *turned(events, 5))
    if not (consumed or rows or snapshots or blobs):
        return statements.COMMIT_RECORDS, *records
    others = ((consumed, 4), (rows, 8), (snapshots, 4), (blobs, 3))
    return statements.COMMIT, *records, *(one for pair in others for one in turned(*pair))


def _latest_rows(session: UUID, group: list[StepCommit]) -> Rows:
    latest: dict[tuple[str, str], tuple[Any, ...]] = {}
    for step in group:
        for row in step.rows:
            place = (row.session.tenant, row.id)
            *columns, created_at, encoded = row_columns(row)
            if place in latest:
                created_at = latest[place][-2]
            latest[place] = (session, *columns, created_at, encoded)
    return list(latest.values())


def row_columns(row: RunRow) -> tuple[Any, ...]:
    """Return the columns of a run's row."""
    tenant, agent, key = row.session
    return tenant, row.id, agent, key, row.status, row.created_at, _encode_row(row)


async def _why_refused(ask: Ask, operation: Commit) -> StoreError | None:
    """Return the reason why a step was not written; None if it was, by what we lost sight of."""
    step, consumed = operation.step, list(operation.step.consumed)
    last = step.expected + len(step.records)
    found = await ask(statements.STANDING, *operation.key, last, consumed)
    epoch, nonce, version, written, used = found[0] if found else (0, None, 0, None, 0)
    if operation.unsure:
        # A step with records is in the log with its own hash, or was never written.
        if step.records and version >= last and written == step.records[-1].hash:
            return None
        if not step.records and consumed and used == len(consumed):
            return None
        # Without either it shows in nothing but what the same claim wrote after it.
        is_past = (epoch, nonce) == step.token and version > step.expected
        if not step.records and not consumed and is_past:
            return None
    if (epoch, nonce) != step.token:
        return Fenced(f"the claim {step.token.epoch} of {step.session} is not the current one")
    if version != step.expected:
        return Conflict(f"{step.session} is at {version}, not at {step.expected}")
    if [record.seq - version for record in step.records] != [*range(1, len(step.records) + 1)]:
        return Conflict(f"the records do not follow position {version} of {step.session}")
    return Conflict(f"a consumed command is not in the inbox of {step.session}")
