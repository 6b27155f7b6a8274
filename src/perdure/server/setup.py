"""The first start: a link that is good once, and makes the first admin key.

Whoever opens the page must also read the console: the link alone may be seen by others, and the
code alone is short. The link is gone once it was used or any admin key exists, after `LIFE_MS`, and
after `WRONG_CODES_MAX` wrong codes; while nobody has a key, the next start offers another one. Of
servers that share a catalog each offers one, and the first that is used is the only one.
"""

from __future__ import annotations

import hmac
import re
from contextlib import suppress
from typing import Final

from perdure.api.errors import Rejected
from perdure.core.errors import InvalidInput, Refused
from perdure.ports.catalog import Catalog, NameTaken, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Answered, Key, Tenant
from perdure.server.keys import Issued, Keyring
from perdure.server.repeats import CLAIM_MS
from perdure.server.tokens import Fresh

TOKEN_BYTES: Final = 32
CODE_CHARS: Final = 8
WRONG_CODES_MAX: Final = 5
TRIED_EVERY_MS: Final = 1_000
LIFE_MS: Final = 3_600_000
CLAIM: Final = "setup"
"""Each server on a catalog offers a link of its own; whose is used first has this."""

_LETTERS: Final = "ABCDEFGHJKMNPQRSTVWXYZ0123456789"
"""32 that are not taken for each other when they are read aloud or typed: no I, L, O, U."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


async def ensure_tenant(catalog: Catalog, slug: str, name: str | None = None) -> TenantCatalog:
    """Return the tenant's part of the catalog, creating the tenant if there is none.

    Raises `InvalidInput` for a slug that is none.
    """
    if not _SLUG.fullmatch(slug):
        raise InvalidInput(
            f"{slug!r} cannot be a tenant: expected 1 to 63 of a-z, 0-9, - and _, beginning with a "
            "letter or digit"
        )
    with suppress(NameTaken):
        await catalog.create(slug, Tenant(slug=slug, name=name or slug))
    return TenantCatalog(catalog, slug)


class SetupLink:
    """An offer that one person may take: `token` belongs into the link, `code` on the console."""

    def __init__(
        self, tenant: TenantCatalog, catalog: Catalog, keyring: Keyring, clock: Clock, fresh: Fresh
    ) -> None:
        self.token = fresh(TOKEN_BYTES).hex()
        letters = "".join(_LETTERS[byte % len(_LETTERS)] for byte in fresh(CODE_CHARS))
        self.code = f"{letters[:4]}-{letters[4:]}"
        self._tenant = tenant
        self._catalog = catalog
        self._keyring = keyring
        self._clock = clock
        self._ends_at_ms = clock.monotonic_ms() + LIFE_MS
        self._tried_at_ms: int | None = None
        self._wrong_codes = 0
        self._used = False

    @classmethod
    async def offer(
        cls, tenant: TenantCatalog, catalog: Catalog, keyring: Keyring, clock: Clock, fresh: Fresh
    ) -> SetupLink | None:
        """Return a link to a tenant's first key if nobody has ever had a key; None if one has."""
        if await has_keys(catalog):
            return None
        left = await tenant.find(Answered, CLAIM)
        if left is not None and left.inserted_at + CLAIM_MS <= clock.now_ms():
            await tenant.delete(Answered, left.id)  # whoever used that link died of it
        return cls(tenant, catalog, keyring, clock, fresh)

    def leads_here(self, token: str) -> bool:
        """Say whether this is the token of the link, good or not: else it is no page at all."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode())

    async def check(self) -> None:
        """Raise `Refused` with the code `gone` if the link is no longer good."""
        if (
            self._used
            or self._wrong_codes >= WRONG_CODES_MAX
            or self._clock.monotonic_ms() >= self._ends_at_ms
            or await has_keys(self._catalog)
        ):
            raise Refused("this link was used, or is too old", "gone")

    async def use(self, code: str) -> Issued:
        """Make the admin key, once, whoever else tries at the same time.

        Raises `Refused` with the code `gone` or `wrong_code`, and `Rejected` (429) for codes that
        come faster than once in a second.
        """
        await self.check()
        now_ms = self._clock.monotonic_ms()
        if self._tried_at_ms is not None and now_ms < self._tried_at_ms + TRIED_EVERY_MS:
            raise Rejected(429, "too many codes: try again in a second", retry_after_s=1)
        self._tried_at_ms = now_ms
        if not hmac.compare_digest(_plain(code), _plain(self.code)):
            self._wrong_codes += 1
            left = WRONG_CODES_MAX - self._wrong_codes
            said = f"that is not the code on the console; {left} more may be tried"
            raise Refused(said, "wrong_code")
        self._used = True  # of all that come at once the first alone gets here: the others are 429
        claim = None
        try:
            claim = await self._tenant.create(Answered(name=CLAIM, request=""))
            return await self._keyring.issue(self._tenant, "admin", name="setup")
        except NameTaken:
            raise Refused("another server's link was used", "gone") from None
        except BaseException:
            self._used = False
            if claim is not None:
                await self._tenant.delete(Answered, claim.id)
            raise


async def has_keys(catalog: Catalog) -> bool:
    """Say whether any tenant has, or ever had, a key."""
    for tenant in await catalog.tenants():
        if await catalog.list(tenant.slug, Key, limit=1, archived=True):
            return True
    return False


def _plain(code: str) -> bytes:
    """Return a code as it is compared, however it was typed."""
    return re.sub(r"[\s-]", "", code).upper().encode(errors="replace")
