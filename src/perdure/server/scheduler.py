"""The scheduler fires triggers: on every node, each minute once, whatever dies meanwhile.

A minute that is due takes three steps:

1. **Claim.** An update of the trigger's entry moves `last_fired_at` to the minute, and writes down
   as `firing` what is to be sent. It is conditional on the revision that was read, so of all nodes
   one wins, and none fires a trigger that was paused, changed or deleted meanwhile.
2. **Send**, under an idempotency key made of the trigger and the minute.
3. **Settle.** The `firing` is taken off the entry.

A crash before the claim has done nothing. After it the firing is on record, and `RESEND_MS` later
any node claims it anew and sends it. If it had been sent, that is the same message to the same
session under the same key, and the store answers with the receipt that it gave before.

A node looks at every trigger once a minute. A minute is missed when no node looked within one after
it: then `catch_up` decides. `once` fires for all that were missed together; minutes before the
trigger's last change (its pause, for example) are not among them.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any, Final, Protocol

from msgspec.structs import replace

from perdure.core.errors import KeyReused, PerdureError, StoreError, Unavailable
from perdure.ports.catalog import Catalog, Stale, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Firing, Trigger
from perdure.ports.telemetry import Telemetry
from perdure.server.cron import MINUTE_MS, Cron, InvalidCron
from perdure.server.pulse import Pulse

RESEND_MS: Final = 30_000
"""A claim this old that was not settled was made by a node that is gone, or nearly."""
PAGE_TRIGGERS: Final = 200
TOGETHER_MAX: Final = 16
"""So many firings are under way at a time: at midnight many are due at once."""

_cron = lru_cache(maxsize=4_096)(Cron)


class Send(Protocol):
    """Has a message accepted durably; the same `idempotency_key` is the same message."""

    async def __call__(
        self,
        tenant: str,
        agent_id: int,
        content: Any,
        session_key: str | None,
        idempotency_key: str,
    ) -> object:
        """Send it; without a session key, to a session of its own.

        A `StoreError` says that it may not have been accepted, any other `PerdureError` that it
        never will be.
        """
        ...


class Scheduler:
    """Fires the triggers of all tenants.

    `jitter_ms` is how far nodes spread what they would all do at the same moment of a minute.
    """

    def __init__(
        self,
        catalog: Catalog,
        send: Send,
        clock: Clock,
        telemetry: Telemetry,
        jitter_ms: int = 1_000,
    ) -> None:
        self._catalog = catalog
        self._send = send
        self._clock = clock
        self._telemetry = telemetry
        self._jitter_ms = jitter_ms
        self._pulse = Pulse("scheduler", self._beat, clock, telemetry)

    def start(self) -> None:
        """Look now, and from then on once a minute."""
        self._pulse.start()

    async def stop(self) -> None:
        """Look no more. What was claimed and not settled is sent by another node, or later."""
        await self._pulse.stop()

    async def _beat(self) -> int:
        await self.run_once()
        minute = self._clock.now_ms() // MINUTE_MS + 1
        return minute * MINUTE_MS + int(self._jitter_ms * self._clock.chance())

    async def run_once(self) -> None:
        """Fire what is due now. Raises what the catalog raises; it can be called again."""
        now = self._clock.now_ms()
        for tenant in await self._catalog.tenants():
            try:
                await self._fire_all(tenant.slug, now)
            except Unavailable:
                raise
            except StoreError as error:  # an entry that cannot be read stops its tenant only
                service = f"scheduler of {tenant.slug}"
                self._telemetry.emit("service.failed", service=service, error=repr(error))

    async def _fire_all(self, tenant: str, now: int) -> None:
        after: int | None = None
        while page := await self._catalog.list(tenant, Trigger, after=after, limit=PAGE_TRIGGERS):
            after = page[-1].id
            ready = [
                trigger
                for trigger in page
                if is_owed(trigger, now) or self._due(tenant, trigger, now) is not None
            ]
            for at in range(0, len(ready), TOGETHER_MAX):
                async with asyncio.TaskGroup() as firings:
                    for trigger in ready[at : at + TOGETHER_MAX]:
                        firings.create_task(self._fire(tenant, trigger, now))

    def _due(self, tenant: str, trigger: Trigger, now: int) -> int | None:
        try:
            return due(trigger, now)
        except InvalidCron as error:
            self._telemetry.emit(
                "trigger.invalid", tenant=tenant, trigger=trigger.id, error=str(error)
            )
            return None

    async def _fire(self, tenant: str, trigger: Trigger, now: int) -> None:
        """Send what is owed, then what is due. Whoever loses a race leaves it to the winner."""
        try:
            if trigger.firing is not None:
                firing = replace(trigger.firing, claimed_at=now)
                claimed = await self._catalog.update(tenant, replace(trigger, firing=firing))
                settled = await self._send_and_settle(tenant, claimed, firing)
                if settled is None:
                    return
                trigger = settled
            if (minute := self._due(tenant, trigger, now)) is not None:
                firing = Firing(minute, now, trigger.message, trigger.conversation_key)
                claimed = await self._catalog.update(
                    tenant, replace(trigger, last_fired_at=minute, firing=firing)
                )
                await self._send_and_settle(tenant, claimed, firing)
        except Stale:
            return
        except Exception as error:  # noqa: BLE001  one trigger does not stop the others
            service = f"scheduler, trigger {trigger.id} of {tenant}"
            self._telemetry.emit("service.failed", service=service, error=repr(error))

    async def _send_and_settle(
        self, tenant: str, trigger: Trigger, firing: Firing
    ) -> Trigger | None:
        """Return the trigger once it owes nothing any more; None if it still does, or is gone."""
        about = {"tenant": tenant, "trigger": trigger.id, "minute": firing.minute}
        key = f"trigger_{trigger.id}_{firing.minute}"
        try:
            await self._send(tenant, trigger.agent_id, firing.message, firing.session_key, key)
        except StoreError as error:
            if not isinstance(error, KeyReused):
                self._telemetry.emit("trigger.waits", **about, error=str(error))
                return None
            self._telemetry.emit("trigger.refused", **about, error=str(error))
        except PerdureError as error:
            self._telemetry.emit("trigger.refused", **about, error=str(error))
        else:
            self._telemetry.emit("trigger.fired", **about)

        def settle(current: Trigger) -> Trigger:
            return replace(current, firing=None) if current.firing == firing else current

        return await TenantCatalog(self._catalog, tenant).change(Trigger, trigger.id, settle)


def is_owed(trigger: Trigger, now: int) -> bool:
    """Say whether a trigger has a firing that whoever claimed it did not settle in time."""
    return trigger.firing is not None and trigger.firing.claimed_at + RESEND_MS <= now


def due(trigger: Trigger, now: int) -> int | None:
    """Return the minute for which a trigger has to fire at `now`; None if there is none.

    Both are milliseconds since 1970. The minute of this moment comes before any that was missed,
    and stands for them. Raises `InvalidCron`.
    """
    if not trigger.enabled or trigger.firing is not None:
        return None
    cron = _cron(trigger.cron, trigger.timezone)
    # A change counts from its own minute on, so that none made in it takes the minute away.
    since = max(trigger.inserted_at, trigger.updated_at - MINUTE_MS, trigger.last_fired_at or 0)
    minute = cron.next_after(max(since, now - MINUTE_MS))
    if minute > now and trigger.catch_up == "once":
        minute = cron.next_after(since)
    return minute if minute <= now else None
