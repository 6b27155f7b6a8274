"""Requests that come twice: whoever gives a key for one gets the same answer for a day.

A key is claimed in the catalog before its request is carried out, and the answer is there before it
is given. So of all that come with one key, one is carried out, whichever node they come to. If that
node dies in between, the key is held for `CLAIM_MS`; then a repetition is carried out in its place.
What was refused is not remembered: nothing was done, and the key may be used again.

Answers may hold what is shown once only, such as a key. They are sealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from perdure.api.errors import Rejected
from perdure.core.errors import KeyReused, PerdureError, Unavailable
from perdure.core.ids import digest
from perdure.ports.catalog import NameTaken, Stale, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Answered
from perdure.server.sealing import Seal

KEPT_MS = 24 * 3600 * 1000
CLAIM_MS = 30_000
FORGOTTEN_AT_ONCE = 2
"""With every new answer up to so many old ones are forgotten, so that they do not grow."""


class Stored(msgspec.Struct, frozen=True):
    """An answer: its status, and its body as JSON."""

    status: int
    body: bytes


class Repeats:
    """A tenant's answers to requests that had a key."""

    def __init__(self, catalog: TenantCatalog, seal: Seal, clock: Clock) -> None:
        self._catalog = catalog
        self._seal = seal
        self._clock = clock
        self._under_way: dict[str, asyncio.Event] = {}

    async def once(
        self, what: str, key: str, request: bytes, act: Callable[[], Awaitable[Stored]]
    ) -> Stored:
        """Return what `act` answers, or what it answered to the same request before.

        A key belongs to `what` is done. Raises `KeyReused` if `request` is another one than before,
        `Rejected` (409) if another node is at it, and whatever `act` raises.
        """
        name, wanted = _name(what, key), digest(request)
        while True:
            if (known := await self._known(name, wanted)) is not None:
                return known
            if (event := self._under_way.get(name)) is not None:
                await event.wait()
                continue
            event = self._under_way[name] = asyncio.Event()
            try:
                claim = await self._claim(name, wanted)
                if claim is not None:
                    return await self._carry_out(claim, act)
            finally:
                del self._under_way[name]
                event.set()

    async def known(self, what: str, key: str, request: bytes) -> Stored | None:
        """Return what was answered to this request before. Raises `KeyReused`, as `once` does."""
        return await self._known(_name(what, key), digest(request))

    async def _known(self, name: str, wanted: str) -> Stored | None:
        found = await self._catalog.find(Answered, name)
        if found is None or self._is_old(found):
            return None
        if found.request != wanted:
            raise KeyReused(
                "the Idempotency-Key was used with another request already; "
                "a new request needs a new key"
            )
        if found.answer is None:
            return None
        return Stored(found.status, self._seal.unseal(found.answer).encode())

    async def _claim(self, name: str, wanted: str) -> Answered | None:
        """Return a claim of our own; None if somebody else has just made one, or an answer."""
        try:
            return await self._catalog.create(Answered(name=name, request=wanted))
        except NameTaken:
            found = await self._catalog.find(Answered, name)
        if found is None or (found.answer is not None and not self._is_old(found)):
            return None
        if not self._is_old(found) and self._clock.now_ms() < found.updated_at + CLAIM_MS:
            said = "a request with this Idempotency-Key is under way; try again"
            raise Rejected(409, said, retry_after_s=1)
        try:
            fresh = Answered(name=name, request=wanted, claims=found.claims + 1)
            fresh = replace(fresh, id=found.id, revision=found.revision)
            return await self._catalog.update(fresh)
        except Stale:
            return None

    async def _carry_out(self, claim: Answered, act: Callable[[], Awaitable[Stored]]) -> Stored:
        try:
            done = await act()
        except PerdureError as error:
            # Of what is not known to have failed, nobody else may say for a while that it has.
            if not isinstance(error, Unavailable):
                with suppress(PerdureError):
                    await self._catalog.delete(Answered, claim.id)
            raise
        sealed = self._seal.seal(done.body.decode())
        await self._catalog.update(replace(claim, status=done.status, answer=sealed))
        with suppress(Unavailable):
            await self._forget_old()
        return done

    async def _forget_old(self) -> None:
        for old in await self._catalog.list(Answered, limit=FORGOTTEN_AT_ONCE):
            if self._is_old(old):
                await self._catalog.delete(Answered, old.id)

    def _is_old(self, found: Answered) -> bool:
        return self._clock.now_ms() >= found.inserted_at + KEPT_MS


def _name(what: str, key: str) -> str:
    return digest(f"{what}\x1f{key}".encode(errors="surrogatepass"))
