"""The first start: a link that is good once, and makes the first tenant and its admin key.

Whoever sees the page must also read the console: the link alone may be seen by others, and the code
alone is short. After `WRONG_CODES_MAX` wrong codes the link is gone until the next start.
"""

from __future__ import annotations

import hmac
import re
from contextlib import suppress
from typing import Final

from perdure.core.errors import InvalidInput, Refused
from perdure.ports.catalog import Catalog, NameTaken, TenantCatalog
from perdure.ports.entries import Key, Tenant
from perdure.server.keys import Issued, Keyring
from perdure.server.tokens import Fresh

TOKEN_BYTES: Final = 32
CODE_BYTES: Final = 4
WRONG_CODES_MAX: Final = 5

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

    def __init__(self, catalog: Catalog, keyring: Keyring, fresh: Fresh) -> None:
        self.token = fresh(TOKEN_BYTES).hex()
        self.code = fresh(CODE_BYTES).hex()
        self._catalog = catalog
        self._keyring = keyring
        self._is_open = True
        self._wrong_codes = 0

    @classmethod
    async def offer(cls, catalog: Catalog, keyring: Keyring, fresh: Fresh) -> SetupLink | None:
        """Return a link if no tenant has ever had a key; None if one has."""
        for tenant in await catalog.tenants():
            if await catalog.list(tenant.slug, Key, limit=1, archived=True):
                return None
        return cls(catalog, keyring, fresh)

    def leads_here(self, token: str) -> bool:
        """Say whether a link with this token is to be shown: else it is like any missing page."""
        return self._is_open and _same(token, self.token)

    async def use(self, token: str, code: str, slug: str, name: str | None = None) -> Issued:
        """Create the tenant and its admin key, once, whoever else tries at the same time.

        Raises `Refused` with the code `gone` or `wrong_code`, and `InvalidInput` for a slug that is
        none, after which it may be tried again.
        """
        if not self.leads_here(token):
            raise Refused("there is no setup to be done here", "gone")
        if not _same(code.strip().lower(), self.code):
            self._wrong_codes += 1
            self._is_open = self._wrong_codes < WRONG_CODES_MAX
            raise Refused("that is not the code that the console shows", "wrong_code")
        self._is_open = False
        try:
            tenant = await ensure_tenant(self._catalog, slug, name)
            return await self._keyring.issue(tenant, "admin", name="setup")
        except BaseException:
            self._is_open = True
            raise


def _same(given: str, ours: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), ours.encode())
