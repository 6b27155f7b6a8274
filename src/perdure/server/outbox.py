"""The outbox tells endpoints about events: at least once, each time under the same id.

`publish` writes down one delivery for each endpoint that wants the event. Its id follows from the
event and the endpoint, so whoever is not sure whether an event was published publishes it again.

A delivery that is due takes three steps: it is claimed by an update that only one node can win,
which counts the attempt and sets the time of the next one; it is posted, signed, with its id; it is
settled. A crash before the claim has done nothing. A crash after it leaves an attempt whose end
nobody knows, and `CLAIM_MS` later, or at the next start (`free`), the next one is due: a receiver
that has seen the id before drops the repeat. What was delivered stays on record, without being
looked at any more, until `forget`.

An attempt succeeds with a 2xx. All else fails it: a redirect too, which is not followed. After a
failure the endpoint is left alone for a time that grows to an hour, and then gets one delivery, not
all that have gathered. So failures in a row are spread over days: after `FAILURES_MAX` of them, an
answer of 410 Gone, or when `PENDING_MAX` deliveries wait, the endpoint is given up, and what it is
owed has failed. A person enables it (`enabled`) and has that delivered (`Outbox.retry`).

An endpoint that somebody paused is owed what happens meanwhile, and gets it when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from perdure.core.errors import LimitExceeded, PerdureError, StoreError, Unavailable
from perdure.core.ids import digest
from perdure.core.limits import clip
from perdure.ports.catalog import Catalog, NameTaken, Stale, TenantCatalog
from perdure.ports.clock import Clock
from perdure.ports.entries import Delivery, Endpoint
from perdure.ports.telemetry import Telemetry
from perdure.server.egress import Answer
from perdure.server.pulse import AFTER_FAILURE_MS, Pulse
from perdure.server.signatures import sign

BODY_BYTES_MAX: Final = 256 * 1024
DELAYS_MS: Final = tuple(
    1_000 * seconds for seconds in (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
)
"""What a delivery waits after its first failure, its second, ...: three days altogether."""
ATTEMPTS_MAX: Final = len(DELAYS_MS) + 1
REST_MS_MIN: Final = 5_000
REST_MS_MAX: Final = 3_600_000
"""How long an endpoint is left alone after a failure: twice as long after each, up to this."""
FAILURES_MAX: Final = 80
JITTER_PART: Final = 0.2
RETRY_AFTER_MS_MAX: Final = 86_400_000
CLAIM_MS: Final = 20_000
"""How long an attempt may take; longer than the egress allows."""
LOOK_MS: Final = 30_000
"""What another node published is seen this much later at most."""
PAGE_DELIVERIES: Final = 100
TOGETHER_MAX: Final = 4
"""So many attempts are under way at a time, at one endpoint; and at all of them:"""
ALTOGETHER_MAX: Final = 1_000
PENDING_MAX: Final = 10_000
"""So many deliveries may wait for one endpoint, and so many that have ended are kept:"""
KEPT_MAX: Final = 1_000
KEPT_MS: Final = 30 * 24 * 3600 * 1000
TIDIED_EVERY: Final = 500
"""With every so many events for an endpoint its deliveries are counted: there may be more."""
FORGOTTEN_EVERY_MS: Final = 3_600_000
ERROR_CHARS_MAX: Final = 300

Post = Callable[[str, Mapping[str, str], bytes], Awaitable[Answer]]
"""Posts headers and body to a URL; raises when there is no answer. See `Egress.post`."""


class _Failure(msgspec.Struct, frozen=True):
    """Why an attempt failed, and what the endpoint asks for."""

    error: str
    gone: bool = False
    wait_ms: int = 0


class Outbox:
    """Delivers to the endpoints of all tenants.

    `unseal` turns a signing secret that an endpoint holds into the one that signs.
    """

    def __init__(
        self,
        catalog: Catalog,
        post: Post,
        unseal: Callable[[str], str],
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._catalog = catalog
        self._post = post
        self._unseal = unseal
        self._clock = clock
        self._telemetry = telemetry
        self._pulse = Pulse("outbox", self._look, clock, telemetry)
        self._altogether = asyncio.Semaphore(ALTOGETHER_MAX)
        self._serving: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._asked_meanwhile: set[tuple[str, int]] = set()
        self._started = False
        self._published: Counter[tuple[str, int]] = Counter()
        self._forget_at = 0

    async def free(self) -> None:
        """Let go of what earlier lives of this server claimed: nobody is at it when it starts."""
        now = self._clock.now_ms()
        for tenant in await self._catalog.tenants():
            with self._alone(tenant.slug):
                async for page in self._pages(tenant.slug):
                    for one in page:
                        if one.claimed:
                            freed = replace(one, claimed=False, next_at=now)
                            await self._catalog.update(tenant.slug, freed)

    def start(self) -> None:
        """Deliver what is due, now and from then on."""
        self._started = True
        self._pulse.start()

    async def stop(self) -> None:
        """Deliver nothing more. An attempt that is under way is made again later."""
        self._started = False
        await self._pulse.stop()
        for task in (tasks := list(self._serving.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run_once(self) -> None:
        """Make all attempts that are due at this moment, without having to be started."""
        await self._look()
        while self._serving:
            await asyncio.gather(*self._serving.values())

    async def publish(
        self,
        tenant: str,
        event_id: str,
        event: str,
        data: Mapping[str, Any],
        at_ms: int,
        agent: int | None = None,
    ) -> int:
        """Owe an event to every endpoint that wants it and was there by then; return how many do.

        `event` is its type (`run.completed`), `at_ms` when it happened, `agent` whose it is. The
        same `event_id` is the same event, however often it is published. Raises `LimitExceeded` if
        it is too large.
        """
        wanting = [
            one
            for one in await self._catalog.list(tenant, Endpoint)
            if one.disabled_because is None
            and event in (one.events or [event])
            and one.agent_id in (None, agent)
            and one.inserted_at <= at_ms
        ]
        for endpoint in wanting:
            await self.owe(tenant, endpoint, event_id, event, data, at_ms)
        return len(wanting)

    async def owe(
        self,
        tenant: str,
        endpoint: Endpoint,
        event_id: str,
        event: str,
        data: Mapping[str, Any],
        at_ms: int,
    ) -> Delivery | None:
        """Owe an event to an endpoint, whatever it wants; None if it was owed before."""
        delivery = Delivery(
            endpoint_id=endpoint.id,
            message_id=message_id(tenant, endpoint.id, event_id),
            event=event,
            body=_body(event, data, at_ms),
            next_at=self._clock.now_ms(),
        )
        made = None
        with contextlib.suppress(NameTaken):  # it was published before
            made = await self._catalog.create(tenant, delivery)
            await self._tidy(tenant, endpoint)
        self.begin(tenant, endpoint.id)
        return made

    def begin(self, tenant: str, endpoint: int) -> None:
        """Look at an endpoint that was changed, or is owed something."""
        if self._started:
            self._begin(tenant, endpoint)

    async def drop(self, tenant: str, endpoint: int) -> None:
        """Forget everything that an endpoint, which was deleted, was owed or told."""
        async for page in self._pages(tenant, endpoint, archived=True):
            for one in page:
                await self._catalog.delete(tenant, Delivery, one.id)

    async def _tidy(self, tenant: str, endpoint: Endpoint) -> None:
        """Keep what is on record of an endpoint within bounds; give it up if it is owed more."""
        place = tenant, endpoint.id
        self._published[place] += 1
        if self._published[place] % TIDIED_EVERY != 1:
            return
        pending = ended = 0
        async for page in self._pages(tenant, endpoint.id, newest_first=True, archived=True):
            for one in page:
                pending += one.archived_at is None
                ended += one.archived_at is not None
                if one.archived_at is not None and ended > KEPT_MAX:
                    await self._catalog.delete(tenant, Delivery, one.id)
        if pending > PENDING_MAX:
            reason = f"more than {PENDING_MAX} deliveries waited for it"
            await self._give_up(tenant, endpoint.id, reason)

    async def _give_up(self, tenant: str, endpoint: int, reason: str) -> None:
        def disabled(found: Endpoint) -> Endpoint:
            return replace(found, enabled=False, disabled_because=reason)

        await TenantCatalog(self._catalog, tenant).change(Endpoint, endpoint, disabled)
        self._telemetry.emit("endpoint.disabled", tenant=tenant, endpoint=endpoint, reason=reason)

    async def retry(self, tenant: str, id: int) -> Delivery | None:
        """Owe a delivery again that has ended, from its first attempt; None if there is none."""

        def renew(found: Delivery) -> Delivery:
            if found.archived_at is None:
                return found
            now = self._clock.now_ms()
            return replace(found, archived_at=None, status="pending", attempts=0, next_at=now)

        renewed = await TenantCatalog(self._catalog, tenant).change(Delivery, id, renew)
        if renewed is not None:
            self.begin(tenant, renewed.endpoint_id)
        return renewed

    async def forget(self, before_ms: int) -> int:
        """Forget deliveries that were published before that time and need nothing more.

        Those of an endpoint that was deleted are among them. Returns how many they were.
        """
        forgotten = 0
        for tenant in await self._catalog.tenants():
            with self._alone(tenant.slug):
                known = {one.id for one in await self._catalog.list(tenant.slug, Endpoint)}
                async for page in self._pages(tenant.slug, archived=True):
                    old = [one for one in page if one.inserted_at < before_ms]
                    for one in old:
                        if one.archived_at is not None or one.endpoint_id not in known:
                            forgotten += await self._catalog.delete(tenant.slug, Delivery, one.id)
                    if len(old) < len(page):
                        break
        return forgotten

    async def _pages(
        self,
        tenant: str,
        of: int | None = None,
        *,
        newest_first: bool = False,
        archived: bool = False,
    ) -> AsyncIterator[list[Delivery]]:
        after: int | None = None
        while page := await self._catalog.list(
            tenant,
            Delivery,
            of=of,
            after=after,
            limit=PAGE_DELIVERIES,
            newest_first=newest_first,
            archived=archived,
        ):
            yield page
            after = page[-1].id

    @contextlib.contextmanager
    def _alone(self, tenant: str) -> Iterator[None]:
        """Tell about a tenant's entry that cannot be read, and go on with the other tenants."""
        try:
            yield
        except Unavailable:
            raise
        except StoreError as error:
            service = f"outbox of {tenant}"
            self._telemetry.emit("service.failed", service=service, error=repr(error))

    async def _look(self) -> int:
        for tenant in await self._catalog.tenants():
            with self._alone(tenant.slug):
                for endpoint in await self._catalog.list(tenant.slug, Endpoint):
                    self._begin(tenant.slug, endpoint.id)
        now = self._clock.now_ms()
        if now >= self._forget_at:
            await self.forget(now - KEPT_MS)
            self._forget_at = now + FORGOTTEN_EVERY_MS
        return self._clock.now_ms() + LOOK_MS

    def _begin(self, tenant: str, endpoint: int) -> None:
        """See to an endpoint, in a task of its own: a slow one keeps nobody waiting but itself."""
        place = tenant, endpoint
        if place in self._serving:
            self._asked_meanwhile.add(place)
        else:
            self._serving[place] = asyncio.ensure_future(self._serve_and_rest(tenant, endpoint))

    async def _serve_and_rest(self, tenant: str, endpoint: int) -> None:
        place, now = (tenant, endpoint), self._clock.now_ms()
        try:
            next_at = await self._serve(tenant, endpoint)
        except Exception as error:  # noqa: BLE001  one endpoint does not stop the others
            next_at = now + AFTER_FAILURE_MS
            service = f"outbox, endpoint {endpoint} of {tenant}"
            self._telemetry.emit("service.failed", service=service, error=repr(error))
        finally:
            del self._serving[place]
        if not self._started:
            return
        if place in self._asked_meanwhile:
            self._asked_meanwhile.remove(place)
            self._begin(tenant, endpoint)
        elif next_at is not None:
            self._pulse.nudge(next_at)

    async def _serve(self, tenant: str, id: int) -> int | None:
        """Make the attempts that are due; return when the next one is, None if none is owed."""
        while (endpoint := await self._catalog.get(tenant, Endpoint, id)) is not None:
            now = self._clock.now_ms()
            if not endpoint.enabled and endpoint.disabled_because is None:
                return None
            if endpoint.enabled and endpoint.retry_at > now:
                return endpoint.retry_at
            due, next_at = await self._due(tenant, endpoint, now)
            if not due:
                return next_at
            async with asyncio.TaskGroup() as attempts:
                for delivery in due:
                    attempts.create_task(self._attempt(tenant, endpoint, delivery))
        return None

    async def _due(
        self, tenant: str, endpoint: Endpoint, now: int
    ) -> tuple[list[Delivery], int | None]:
        """Return deliveries to attempt now, and if there are none, when the next is due.

        An endpoint that failed is tried with one, and not with all that have gathered: the newest,
        which says more about the endpoint than another attempt at what it did not take.
        """
        due: list[Delivery] = []
        next_at: int | None = None
        failed = endpoint.failures > 0
        most = PAGE_DELIVERIES if not endpoint.enabled else 1 if failed else TOGETHER_MAX
        async for page in self._pages(tenant, endpoint.id, newest_first=failed):
            for delivery in page:
                if delivery.next_at <= now or not endpoint.enabled:
                    due.append(delivery)
                elif next_at is None or delivery.next_at < next_at:
                    next_at = delivery.next_at
            if len(due) >= most:
                break
        return due[:most], next_at

    async def _attempt(self, tenant: str, endpoint: Endpoint, delivery: Delivery) -> None:
        """Claim a delivery, post it, settle it. Whoever loses a race leaves it to the winner."""
        async with self._altogether:
            try:
                if not endpoint.enabled:
                    await self._settle(tenant, delivery, _Failure("the endpoint was given up"))
                    return
                if delivery.attempts >= ATTEMPTS_MAX:
                    broke_off = "what came of the last attempt is not known"
                    await self._settle(tenant, delivery, _Failure(broke_off))
                    return
                claimed = await self._catalog.update(
                    tenant,
                    replace(
                        delivery,
                        attempts=delivery.attempts + 1,
                        claimed=True,
                        next_at=self._clock.now_ms() + CLAIM_MS,
                    ),
                )
                failure = await self._tell(endpoint, claimed)
                await self._settle(tenant, claimed, failure, again=True)
            except Stale:
                return
        await self._judge(tenant, endpoint, failure)

    async def _tell(self, endpoint: Endpoint, delivery: Delivery) -> _Failure | None:
        """Post a delivery; return why it was not taken, or None if it was."""
        body, now = delivery.body.encode(), self._clock.now_ms()
        try:
            secrets = [self._unseal(secret) for secret in endpoint.signing_secrets]
            headers = {
                "content-type": "application/json",
                "user-agent": "perdure",
                **sign(secrets, delivery.message_id, now, body),
            }
            answer = await self._post(endpoint.url, headers, body)
        except PerdureError as error:
            return _Failure(clip(str(error), ERROR_CHARS_MAX))
        except Exception as error:  # noqa: BLE001  a bug in the way out must not keep it here
            return _Failure(clip(repr(error), ERROR_CHARS_MAX))
        if 200 <= answer.status < 300:
            return None
        wait = answer.headers.get("retry-after", "")
        asked_ms = int(wait) * 1_000 if re.fullmatch("[0-9]{1,9}", wait) else 0
        return _Failure(
            f"the endpoint answered {answer.status}",
            gone=answer.status == 410,
            wait_ms=min(asked_ms, RETRY_AFTER_MS_MAX),
        )

    async def _settle(
        self, tenant: str, delivery: Delivery, failure: _Failure | None, *, again: bool = False
    ) -> None:
        """Write down what came of a delivery; it is tried `again` as long as it may be."""
        now = self._clock.now_ms()
        delivery = replace(delivery, claimed=False, last_error=failure and failure.error)
        if failure is None:
            ended = replace(delivery, status="delivered", archived_at=now)
        elif again and not failure.gone and delivery.attempts < ATTEMPTS_MAX:
            wait_ms = max(self._spread(DELAYS_MS[delivery.attempts - 1]), failure.wait_ms)
            ended = replace(delivery, next_at=now + wait_ms)
        else:
            ended = replace(delivery, status="failed", archived_at=now)
        await self._catalog.update(tenant, ended)
        if failure is not None:
            self._telemetry.emit(
                "delivery.failed",
                tenant=tenant,
                delivery=delivery.id,
                attempts=delivery.attempts,
                error=failure.error,
            )

    async def _judge(self, tenant: str, seen: Endpoint, failure: _Failure | None) -> None:
        """Count what came of an attempt for its endpoint."""

        def count(current: Endpoint) -> Endpoint:
            if failure is None:
                return replace(current, failures=0, retry_at=0)
            if not current.enabled:
                return current
            if failure.gone:
                return replace(current, enabled=False, disabled_because=failure.error)
            # Attempts that were under way together fail together, and count as one.
            if current.failures != seen.failures:
                return current
            failures = current.failures + 1
            if failures >= FAILURES_MAX:
                reason = f"{failures} attempts in a row failed; the last: {failure.error}"
                return replace(current, enabled=False, disabled_because=reason, failures=failures)
            rest_ms = self._spread(min(REST_MS_MAX, REST_MS_MIN * 2 ** min(seen.failures, 20)))
            retry_at = self._clock.now_ms() + max(rest_ms, failure.wait_ms)
            return replace(current, failures=failures, retry_at=retry_at)

        judged = await TenantCatalog(self._catalog, tenant).change(Endpoint, seen.id, count)
        if judged is not None and seen.enabled and judged.disabled_because is not None:
            self._telemetry.emit(
                "endpoint.disabled",
                tenant=tenant,
                endpoint=seen.id,
                reason=judged.disabled_because,
            )

    def _spread(self, delay_ms: int) -> int:
        return int(delay_ms * (1 + JITTER_PART * self._clock.chance()))


def message_id(tenant: str, endpoint: int, event_id: str) -> str:
    """Return the id under which an endpoint is told about an event."""
    return "msg_" + digest("\x1f".join((tenant, str(endpoint), event_id)).encode())


def enabled(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint as somebody enables it: what it did before is forgotten."""
    return replace(endpoint, enabled=True, disabled_because=None, failures=0, retry_at=0)


def _body(event: str, data: Mapping[str, Any], at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="microseconds")
    told = {"type": event, "timestamp": at.replace("+00:00", "Z"), "data": data}
    body = msgspec.json.encode(told)
    if len(body) > BODY_BYTES_MAX:
        said = f"the webhook for {event} has {len(body)} bytes"
        raise LimitExceeded(f"{said}, more than {BODY_BYTES_MAX}: leave out what can be asked for")
    return body.decode()
