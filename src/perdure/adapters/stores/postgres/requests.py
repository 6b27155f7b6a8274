"""What is awaited, in stages: accept, claim, release."""

from __future__ import annotations

from perdure.adapters.stores.postgres import statements
from perdure.adapters.stores.postgres.commits import row_columns
from perdure.adapters.stores.postgres.operations import Accept, Claim, Operation
from perdure.adapters.stores.postgres.reading import is_whole, loaded
from perdure.adapters.stores.postgres.stages import REQUESTS_MAX, Alone, Ask, Stage, turned
from perdure.core.codec import genesis
from perdure.core.errors import Fenced, KeyReused, LimitExceeded, NotFound
from perdure.core.limits import INBOX_ENTRIES_MAX
from perdure.ports.session_store import Claimed, NotClaimed, Token

NO_MAXIMUM = 2**31 - 1


class Accepts(Stage):
    """Commands for inboxes, several for one session if need be, but each id once."""

    def takes(self, operation: Operation) -> bool:
        """Say whether there is room for a command."""
        assert isinstance(operation, Accept)
        name = (operation.key, operation.entry.id)
        return name not in self._keys and len(self.operations) < REQUESTS_MAX

    def add(self, operation: Operation) -> None:
        """Take a command in."""
        assert isinstance(operation, Accept)
        self.operations.append(operation)
        self._keys.add((operation.key, operation.entry.id))

    @property
    def entries_max(self) -> int:
        """How many commands may wait in an inbox: what asks for no run is always accepted."""
        return NO_MAXIMUM

    async def write(self, ask: Ask) -> Alone:
        """Put the commands into their inboxes, or find out that they are known."""
        asked = [
            (
                *(operation.key.tenant, operation.key.id, *operation.entry.session[1:]),
                *(genesis(operation.entry.session), operation.entry.id, operation.digest),
                *(operation.entry.command, operation.entry.accepted_at, operation.generation),
            )
            for operation in self.operations
        ]
        rows = [
            (n, *row_columns(operation.row))
            for n, operation in enumerate(self.operations, 1)
            if operation.row is not None
        ]
        values = [*turned(asked, 10), self.entries_max, self.operations[0].now, *turned(rows, 8)]
        found = dict(await ask(statements.ACCEPT, *values))
        left = []
        for n, operation in enumerate(self.operations, 1):
            if n not in found:
                left.append(operation)
            elif found[n] is False:
                entry = operation.entry
                why = f"{entry.session} knows {entry.id!r} with another command"
                operation.fail(KeyReused(why))
            else:
                operation.answer(found[n] is True)
        if len(self.operations) > 1:
            return [type(self).of(operation) for operation in left]
        for operation in left:
            session = operation.entry.session
            why = f"{self.entries_max} commands wait in the inbox of {session} already"
            operation.fail(LimitExceeded(why))
        return []


class AcceptRuns(Accepts):
    """Commands that ask for a run, for which there must be room."""

    @property
    def entries_max(self) -> int:
        """How many commands may wait in an inbox."""
        return INBOX_ENTRIES_MAX


class Claims(Stage):
    """Claims of sessions, each with the session as it stands after it."""

    async def write(self, ask: Ask) -> Alone:
        """Take the sessions that can be taken, and find out who holds the others."""
        asked = [
            (*one.key, one.owner, one.nonce, one.strikes_max, one.reads) for one in self.operations
        ]
        now = self.operations[0].now
        taken = {row["id"]: row for row in await ask(statements.CLAIM, *turned(asked, 6), now)}
        for operation in self.operations:
            row = taken.get(operation.key.id)
            if row is None:
                operation.answer(await _not_claimed(ask, operation))
                continue
            token = Token(row["epoch"], operation.nonce)
            if not is_whole(row):
                (row,) = await ask(statements.LOAD, *operation.key)
            operation.answer(Claimed(token, loaded(operation.session, row)))
        return []


async def _not_claimed(ask: Ask, operation: Claim) -> NotClaimed:
    found = await ask(statements.HOLDER, *operation.key, operation.now)
    if not found:
        return NotClaimed("absent")
    owner, quarantine, generation, claims, alive = found[0]
    if quarantine is not None:
        return NotClaimed("quarantined")
    if alive and owner != operation.owner:
        return NotClaimed("held", owner)
    if operation.reads is not None and generation > operation.reads:
        return NotClaimed("newer")
    if operation.strikes_max is not None and claims > operation.strikes_max:
        return NotClaimed("struck")
    # The lease has run out, and the owner may have let go, since the claim found it alive.
    return NotClaimed("held", owner)


class Releases(Stage):
    """Claims that are given up, or taken away by hand."""

    async def write(self, ask: Ask) -> Alone:
        """Free the sessions whose token is the current one."""
        asked = [
            (
                *operation.key,
                *(operation.token or (None, None)),
                operation.quarantine,
                *(operation.snapshot or (None, None)),
            )
            for operation in self.operations
        ]
        freed = {row[0] for row in await ask(statements.RELEASE, *turned(asked, 7))}
        for operation in self.operations:
            if operation.key.id in freed:
                operation.answer(None)
            elif operation.token is None:
                operation.fail(NotFound(f"there is no session {operation.session}"))
            elif operation.unsure:
                # The claim is gone: this did it, and we lost sight of it.
                operation.answer(None)
            else:
                epoch = operation.token.epoch
                why = f"the claim {epoch} of {operation.session} is not the current one"
                operation.fail(Fenced(why))
        return []
