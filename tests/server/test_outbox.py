"""The outbox: every event told at least once, under one id; who never answers is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.core.errors import LimitExceeded
from perdure.ports.entries import Delivery, Endpoint, Tenant
from perdure.server import outbox
from perdure.server.egress import Answer, Egress, EgressDenied, EgressFailed
from perdure.server.outbox import (
    ATTEMPTS_MAX,
    CLAIM_MS,
    DELAYS_MS,
    FAILURES_MAX,
    REST_MS_MAX,
    Outbox,
    enabled,
    message_id,
)
from perdure.server.signatures import new_secret, verify
from perdure.testing.clock import FakeClock
from tests.server.listeners import listening, parts, status
from tests.server.mortal import Catalogs, Life, Notes, dying, unreadable_for

SECRET = new_secret(bytes(range(24)))
HOUR, DAY = 3_600_000, 86_400_000


class Receiver:
    """Somebody's endpoint: checks the signature, drops repeats by their id, answers as told."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.posts: list[tuple[int, str]] = []
        self.taken: dict[str, dict[str, Any]] = {}
        self.answers: list[int | Exception | Answer] = []
        self.always: int | Exception = 200
        self.together = self.most = 0

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Take one webhook."""
        self.together += 1
        self.most = max(self.most, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        verify("standard", SECRET, raw, body, self.clock.now_ms())
        self.posts.append((self.clock.now_ms(), headers["webhook-id"]))
        said = self.answers.pop(0) if self.answers else self.always
        if isinstance(said, Exception):
            raise said
        answer = said if isinstance(said, Answer) else Answer(said, {})
        if answer.status < 300:
            self.taken.setdefault(headers["webhook-id"], msgspec.json.decode(body))
        return answer


class World:
    """A clock, a catalog with one endpoint, and who listens there."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.catalog = MemoryCatalog(self.clock.now_ms)
        self.receiver = Receiver(self.clock)
        self.notes = Notes()

    async def endpoint(self, name: str = "ci", **more: Any) -> Endpoint:
        """An endpoint of our only tenant; its secret is sealed by being written backwards."""
        if not await self.catalog.tenants():
            await self.catalog.create("acme", Tenant(slug="acme", name="Acme"))
        url, secrets = "https://ci.example/hook", (SECRET[::-1],)
        wanted = {"name": name, "url": url, "signing_secrets": secrets, **more}
        return await self.catalog.create("acme", Endpoint(**wanted))

    def node(self, life: Life | None = None, receiver: Receiver | None = None) -> Outbox:
        """A node, which may be about to die."""
        life, receiver = life or Life(), receiver or self.receiver

        async def post(*request: Any) -> Any:
            return await life.step(lambda: receiver.post(*request))

        catalog: Any = Catalogs(self.catalog, life)
        return Outbox(catalog, post, lambda sealed: sealed[::-1], self.clock, self.notes)

    async def publish(self, *events: str, kind: str = "run.completed") -> None:
        """Publish events."""
        for event in events:
            at = self.clock.now_ms()
            await self.node().publish("acme", event, kind, {"run": event}, at)

    async def after(self, delay_ms: int, *nodes: Outbox) -> None:
        """Let time pass, then have nodes look."""
        self.clock.advance(delay_ms)
        await asyncio.gather(*(node.run_once() for node in nodes or (self.node(),)))

    async def deliveries(self) -> list[Delivery]:
        """What is on record, ended or not."""
        return await self.catalog.list("acme", Delivery, archived=True)

    async def found(self) -> Endpoint:
        """The endpoint as it is on record."""
        return (await self.catalog.list("acme", Endpoint))[0]


async def test_an_event_is_told() -> None:
    """Signed, with its type, its time and its data, to whoever wants it."""
    world = World()
    first = await world.endpoint()
    await world.endpoint("other", events=("run.failed",))
    await world.endpoint("off", enabled=False, disabled_because="it is gone")
    await world.endpoint("of another agent", agent_id=7)
    world.clock.advance(1_772_442_000_123 - world.clock.now_ms())
    at = world.clock.now_ms()
    assert await world.node().publish("acme", "e1", "run.completed", {"run": 1}, at) == 1
    await world.after(0)
    told = message_id("acme", first.id, "e1")
    assert world.receiver.taken == {
        told: {
            "type": "run.completed",
            "timestamp": "2026-03-02T09:00:00.123000Z",
            "data": {"run": 1},
        }
    }
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.attempts, delivery.archived_at is None) == (
        "delivered",
        1,
        False,
    )
    await world.after(DAY)
    assert len(world.receiver.posts) == 1


async def test_an_event_is_owed_once_however_often_it_is_published() -> None:
    """Also after it was delivered; and to each endpoint under an id of its own."""
    world = World()
    await world.endpoint("a")
    await world.endpoint("b")
    for _ in range(3):
        await world.publish("e1")
        await world.after(0)
    assert len({told for _, told in world.receiver.posts}) == len(world.receiver.posts) == 2


def test_ids_differ_with_everything_they_follow_from() -> None:
    """And have no point in them, which a signature could not stand."""
    ids = {message_id(*of) for of in [("a", 1, "e"), ("b", 1, "e"), ("a", 2, "e"), ("a", 1, "f")]}
    assert len(ids) == 4
    assert not any("." in one for one in ids)


MOMENTS = 6
"""Before and after each of claim, post and settle."""


@pytest.mark.parametrize("moment", range(1, MOMENTS + 1))
async def test_a_death_at_any_moment_loses_nothing(moment: int) -> None:
    """The receiver got it, dropped the repeat if there was one, and took it once."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    life = Life(dies_at=moment)
    with dying():
        await world.after(0, world.node(life))
    assert life.moments == moment
    for _ in range(3):
        await world.after(CLAIM_MS, world.node(), world.node())
    assert [told["data"] for told in world.receiver.taken.values()] == [{"run": "e1"}]
    assert len(world.receiver.posts) == (2 if moment in (4, 5) else 1)
    (delivery,) = await world.deliveries()
    assert delivery.status == "delivered"


async def test_there_are_no_other_moments() -> None:
    """Else the test above would leave some out."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    life = Life()
    await world.after(0, world.node(life))
    assert life.moments == MOMENTS


FAILING_MOMENTS = 14
"""As above for each of two deliveries, and before and after the count at the endpoint."""


@pytest.mark.parametrize("moment", range(1, FAILING_MOMENTS + 2))
async def test_a_death_at_any_moment_of_a_failure_loses_nothing(moment: int) -> None:
    """One of two fails; then the receiver is back. After the last moment nobody dies."""
    world = World()
    await world.endpoint()
    await world.publish("e1", "e2")
    world.receiver.answers = [500]
    life = Life(dies_at=moment)
    with dying() if moment <= FAILING_MOMENTS else nullcontext():
        await world.after(0, world.node(life))
    for _ in range(10):
        await world.after(60_000)
    assert sorted(told["data"]["run"] for told in world.receiver.taken.values()) == ["e1", "e2"]
    assert {one.status for one in await world.deliveries()} == {"delivered"}
    assert (await world.found()).failures == 0


async def test_many_nodes_make_each_attempt_once() -> None:
    """All look at the same moment; a delivery is posted by one of them."""
    world = World()
    await world.endpoint()
    await world.publish(*(f"e{n}" for n in range(40)))
    await world.after(0, *(world.node() for _ in range(5)))
    assert len(world.receiver.posts) == len(world.receiver.taken) == 40
    assert world.notes.names == []


async def test_an_attempt_under_way_is_left_to_who_makes_it() -> None:
    """For a minute; then it is taken over, and what the slow one says of it counts no more."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def post(*request: Any) -> Answer:
        asleep.set()
        await awake.wait()
        return Answer(500, {})

    slow = Outbox(world.catalog, post, lambda sealed: sealed[::-1], world.clock, world.notes)
    task = asyncio.create_task(slow.run_once())
    await asleep.wait()
    await world.after(CLAIM_MS - 1)
    assert world.receiver.posts == []
    await world.after(1)
    awake.set()
    await task
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.attempts) == ("delivered", 2)
    assert (await world.found()).failures == 0


async def test_a_start_goes_on_at_once_with_what_was_under_way() -> None:
    """The life before it may have told the receiver, or not."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    with dying():
        await world.after(0, world.node(Life(dies_at=3)))
    node = world.node()
    await world.after(0, node)
    assert world.receiver.taken == {}
    await node.free()
    await world.after(0, node)
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.attempts, delivery.claimed) == ("delivered", 2, False)


async def test_a_death_while_publishing_loses_nothing() -> None:
    """Whoever publishes the event again completes what was begun."""
    for moment in range(1, 5):
        world = World()
        await world.endpoint("a")
        await world.endpoint("b")
        life = Life(dies_at=moment)
        with dying():
            await world.node(life).publish("acme", "e1", "run.failed", {}, world.clock.now_ms())
        assert await world.node().publish("acme", "e1", "run.failed", {}, world.clock.now_ms()) == 2
        await world.after(0)
        assert len(world.receiver.posts) == 2


async def test_attempts_come_at_growing_intervals_under_one_id() -> None:
    """Over three days, each a little later than it has to be; then it has failed, visibly."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    world.receiver.always = 503
    for _ in range(5 * 24 * 4):
        await world.after(DAY // 96)
    times = [at for at, _ in world.receiver.posts]
    waited = [later - at for at, later in pairwise(times)]
    assert len(times) == ATTEMPTS_MAX
    assert len({told for _, told in world.receiver.posts}) == 1
    for delay, wait in zip(DELAYS_MS, waited, strict=True):
        assert delay <= wait <= max(delay * 1.2, REST_MS_MAX) + 2 * DAY // 96
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.last_error) == ("failed", "the endpoint answered 503")
    assert delivery.archived_at is not None
    assert world.notes.names == ["delivery.failed"] * ATTEMPTS_MAX


FAILURES = [
    (301, "the endpoint answered 301"),
    (404, "the endpoint answered 404"),
    (199, "the endpoint answered 199"),
    (EgressDenied("denied"), "denied"),
    (EgressFailed("no answer"), "no answer"),
    (ValueError("a bug"), "ValueError('a bug')"),
    (EgressFailed("x" * 5_000), "x" * 300 + "… (4700 more characters)"),
]


@pytest.mark.parametrize("said, expected", FAILURES)
async def test_everything_but_a_2xx_is_a_failure(said: int | Exception, expected: str) -> None:
    """It is tried again, and the next attempt may be taken."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    world.receiver.answers = [said]
    await world.after(0)
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.last_error) == ("pending", expected)
    await world.after(7_000)
    assert len(world.receiver.taken) == 1


async def test_an_endpoint_says_when_it_wants_to_be_asked_again() -> None:
    """In seconds; nonsense, or a date, is our own delay; a month is a day."""
    for wait, expected in (("900", 900_000), ("soon", 5_000), ("-1", 5_000), ("9999999", DAY)):
        world = World()
        await world.endpoint()
        await world.publish("e1")
        world.receiver.answers = [Answer(429, {"retry-after": wait})]
        await world.after(0)
        (delivery,) = await world.deliveries()
        waits = delivery.next_at - world.clock.now_ms()
        assert expected <= waits <= expected * 1.2
        assert (await world.found()).retry_at - world.clock.now_ms() >= expected
        await world.after(expected - 1)
        assert world.receiver.taken == {}
        await world.after(expected // 5 + 2)
        assert len(world.receiver.taken) == 1


async def test_an_endpoint_that_is_gone_is_disabled_at_once() -> None:
    """It said so: 410."""
    world = World()
    await world.endpoint()
    await world.publish("e1", "e2")
    world.receiver.answers = [410]
    await world.after(0)
    found = await world.found()
    assert (found.enabled, found.disabled_because) == (False, "the endpoint answered 410")
    assert "endpoint.disabled" in world.notes.names
    await world.publish("e3")
    await world.after(DAY)
    assert len(await world.deliveries()) == 2


async def test_an_endpoint_that_never_answers_is_disabled_after_days() -> None:
    """However many events there are, it is asked once a while; what is owed then has failed."""
    world = World()
    await world.endpoint()
    world.receiver.always = EgressFailed("refused")
    begin, hours = world.clock.now_ms(), 0
    while (await world.found()).enabled:
        hours += 1
        await world.publish(*(f"e{hours}.{n}" for n in range(3)))
        await world.after(HOUR + HOUR // 5)
    assert 2 * DAY < world.clock.now_ms() - begin < 6 * DAY
    found = await world.found()
    assert found.disabled_because == f"{FAILURES_MAX} attempts in a row failed; the last: refused"
    assert FAILURES_MAX <= len(world.receiver.posts) <= FAILURES_MAX + 8
    for _ in range(5):
        await world.after(DAY)
    errors = {(one.status, one.last_error) for one in await world.deliveries()}
    assert errors <= {("failed", "the endpoint was given up"), ("failed", "refused")}

    world.receiver.always = 200
    await world.catalog.update("acme", enabled(await world.found()))
    for delivery in (await world.deliveries())[-3:]:
        await world.node().retry("acme", delivery.id)
    await world.after(0)
    assert len(world.receiver.taken) == 3
    assert await world.node().retry("acme", 9_999) is None


async def test_a_short_outage_under_load_disables_nothing() -> None:
    """A hundred events meet a receiver that is down for a minute: that is a few failures."""
    world = World()
    await world.endpoint()
    await world.publish(*(f"e{n}" for n in range(100)))
    world.receiver.always = 502
    for _ in range(12):
        await world.after(5_000)
    assert 2 <= (await world.found()).failures <= 5
    world.receiver.always = 200
    for _ in range(10):
        await world.after(60_000)
    assert len(world.receiver.taken) == 100
    assert (await world.found()).failures == 0


async def test_a_webhook_that_is_never_taken_holds_up_no_other() -> None:
    """More of them than are looked at together, and in front."""
    world = World()
    await world.endpoint()
    await world.publish(*(f"bad{n}" for n in range(20)))
    world.receiver.always = 400
    for _ in range(10):
        await world.after(5_000)
    world.receiver.always = 200
    bad = {one.message_id for one in await world.deliveries()}
    await world.publish("good")

    async def post(url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        refuses = headers["webhook-id"] in bad
        return Answer(400, {}) if refuses else await world.receiver.post(url, headers, body)

    node = Outbox(world.catalog, post, lambda sealed: sealed[::-1], world.clock, world.notes)
    for _ in range(12 * 30):
        await world.after(10_000, node)
    assert [told["data"] for told in world.receiver.taken.values()] == [{"run": "good"}]


async def test_an_attempt_that_broke_off_last_has_failed() -> None:
    """A body that kills whoever sends it is not sent for ever."""
    world = World()
    await world.endpoint()
    await world.publish("e1")
    for _ in range(ATTEMPTS_MAX):
        with dying():
            await world.after(CLAIM_MS, world.node(Life(dies_at=3)))
    await world.after(CLAIM_MS)
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.attempts) == ("failed", ATTEMPTS_MAX)
    assert delivery.last_error == "what came of the last attempt is not known"


async def test_what_ended_is_forgotten_in_time() -> None:
    """And what an endpoint that was deleted was owed; what is pending stays."""
    world = World()
    await world.endpoint("a")
    await world.publish(*(f"e{n}" for n in range(150)))
    await world.after(0)
    world.receiver.always = 500
    await world.publish("late")
    await world.after(1_000)
    gone = await world.endpoint("gone")
    await world.publish("orphan")
    await world.catalog.delete("acme", Endpoint, gone.id)
    await world.after(DAY)
    await world.publish("new")
    assert await world.node().forget(world.clock.now_ms() - HOUR) == 151
    kept = [msgspec.json.decode(one.body)["data"]["run"] for one in await world.deliveries()]
    assert kept == ["late", "orphan", "new"]


async def test_a_body_has_a_limit() -> None:
    """The publisher hears of it; the receiver is not surprised."""
    world = World()
    await world.endpoint()
    with pytest.raises(LimitExceeded, match="run.completed has .* bytes, more than 262144"):
        await world.node().publish(
            "acme", "e1", "run.completed", {"text": "x" * 262_144}, world.clock.now_ms()
        )


async def test_a_paused_endpoint_gets_what_happened_when_it_goes_on() -> None:
    """It is owed it meanwhile, and nobody asks it."""
    world = World()
    endpoint = await world.endpoint()
    await world.publish("before")
    await world.catalog.update("acme", replace(endpoint, enabled=False))
    await world.publish("meanwhile")
    for _ in range(5):
        await world.after(DAY)
    assert (world.receiver.posts, world.notes.names) == ([], [])
    await world.catalog.update("acme", enabled(await world.found()))
    await world.after(0)
    assert [told["data"]["run"] for told in world.receiver.taken.values()] == [
        "before",
        "meanwhile",
    ]


@pytest.mark.parametrize(("agent", "events", "told"), [
    (None, (), 3), (1, (), 2), (2, (), 1), (None, ("run.failed",), 1), (2, ("run.failed",), 0),
])  # fmt: skip
async def test_an_endpoint_chooses(agent: int | None, events: tuple[str, ...], told: int) -> None:
    """By the agent and by the type; what happened before it was there is not for it."""
    world = World()
    early = world.clock.now_ms()
    world.clock.advance(1)
    await world.endpoint(agent_id=agent, events=events)
    for number, kind, by in ((1, "run.failed", 1), (2, "run.started", 1), (3, "run.started", 2)):
        for at in (early, world.clock.now_ms()):
            await world.node().publish("acme", f"e{number}/{at}", kind, {}, at, by)
    assert len(await world.deliveries()) == told


async def test_what_is_kept_of_an_endpoint_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of what ended are kept; an endpoint that is owed too much is given up."""
    for name, value in (("KEPT_MAX", 10), ("PENDING_MAX", 20), ("TIDIED_EVERY", 5)):
        monkeypatch.setattr(outbox, name, value)
    world = World()
    await world.endpoint()
    node = world.node()
    for number in range(60):
        await node.publish("acme", f"e{number}", "run.started", {}, world.clock.now_ms())
        await world.after(1, node)
    assert 10 <= len(await world.deliveries()) <= 15
    world.receiver.always = 500
    for number in range(60, 100):
        await node.publish("acme", f"e{number}", "run.started", {}, world.clock.now_ms())
    await world.after(0, node)
    found = await world.found()
    assert found.disabled_because == "more than 20 deliveries waited for it"
    assert {one.status for one in await world.deliveries()} == {"delivered", "failed"}
    assert len(await world.deliveries()) <= 10 + 5 + 20 + 5
    assert "endpoint.disabled" in world.notes.names


async def test_an_endpoint_that_was_deleted_leaves_nothing() -> None:
    """Also if its last attempt is under way; others keep what is theirs."""
    world = World()
    gone = await world.endpoint("gone")
    await world.endpoint("other")
    await world.publish(*(f"e{n}" for n in range(150)))
    await world.catalog.delete("acme", Endpoint, gone.id)
    await world.node().drop("acme", gone.id)
    assert {one.endpoint_id for one in await world.deliveries()} == {gone.id + 1}
    await world.after(0)
    assert len(world.receiver.taken) == 150


async def settle() -> None:
    """Let tasks run until they wait for the clock."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_started_outbox_delivers_by_itself() -> None:
    """What it publishes at once; what another node published soon; a retry when it is due."""
    world = World()
    await world.endpoint()
    node = world.node()
    node.start()
    await settle()
    world.receiver.answers = [500]
    await node.publish("acme", "e1", "run.completed", {}, world.clock.now_ms())
    await settle()
    assert (len(world.receiver.posts), len(world.receiver.taken)) == (1, 0)
    world.clock.advance(7_000)
    await settle()
    assert len(world.receiver.taken) == 1
    await world.publish("e2")
    world.clock.advance(31_000)
    await settle()
    assert len(world.receiver.taken) == 2
    await node.stop()
    assert world.clock.next_at_ms() is None
    await node.publish("acme", "e3", "run.completed", {}, world.clock.now_ms())
    await settle()
    assert len(world.receiver.posts) == 3


async def test_what_is_published_at_the_last_moment_is_not_left_lying() -> None:
    """An endpoint has just been found to be owed nothing, and now it is."""
    world = World()
    await world.endpoint()
    node, real, late = world.node(), world.catalog.list, ["e1"]

    async def find(tenant: str, kind: Any, **query: Any) -> Any:
        found = await real(tenant, kind, **query)
        if kind is Delivery and late:
            await node.publish("acme", late.pop(), "run.completed", {}, world.clock.now_ms())
        return found

    world.catalog.list = find  # type: ignore[method-assign]
    node.start()
    world.clock.advance(0)
    await settle()
    assert len(world.receiver.taken) == 1
    await node.stop()


async def test_a_slow_endpoint_keeps_only_itself_waiting() -> None:
    """It has a task of its own, and a share of what may be under way; a stop breaks it off."""
    world = World()
    await world.endpoint("slow", url="https://slow.example/")
    never = asyncio.Event()

    async def post(url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if "slow" in url:
            await never.wait()
        return await world.receiver.post(url, headers, body)

    node = Outbox(world.catalog, post, lambda sealed: sealed[::-1], world.clock, world.notes)
    node.start()
    for n in range(20):
        await node.publish("acme", f"slow{n}", "run.completed", {}, world.clock.now_ms())
    await world.endpoint("fast")
    await settle()
    await node.publish("acme", "e1", "run.completed", {}, world.clock.now_ms())
    await settle()
    assert len(world.receiver.taken) == 1
    await node.publish("acme", "e2", "run.completed", {}, world.clock.now_ms())
    await settle()
    assert len(world.receiver.taken) == 2
    await node.stop()
    pending = [one for one in await world.deliveries() if one.status == "pending"]
    assert sorted(one.attempts for one in pending) == [0] * 18 + [1] * 4


async def test_an_endpoint_that_breaks_something_breaks_it_alone() -> None:
    """A catalog that fails for one of them is no outage of the other."""
    world = World()
    bad = await world.endpoint("bad")
    await world.endpoint("good")
    await world.publish("e1")
    real = world.catalog.get

    async def get(tenant: str, kind: Any, id: int) -> Any:
        if id == bad.id:
            raise TypeError("a bug")
        return await real(tenant, kind, id)

    world.catalog.get = get  # type: ignore[method-assign]
    await world.after(0)
    assert (len(world.receiver.taken), world.notes.names) == (1, ["service.failed"])


async def test_over_a_real_connection() -> None:
    """Through the guarded way out: refused by it, then redirected, then taken."""
    answers = [status(302, location="http://127.0.0.1:1/"), status(204)]
    async with listening(lambda request: answers.pop(0)) as listener:
        world = World()
        await world.endpoint(url=f"http://127.0.0.1:{listener.port}/hook")
        await world.publish("e1")
        for allowed in ([], ["127.0.0.0/8"], ["127.0.0.0/8"]):
            post = Egress(ports=[listener.port], allowed=allowed).post
            node = Outbox(world.catalog, post, lambda s: s[::-1], world.clock, world.notes)
            await world.after(HOUR, node)
        assert listener.connections == 2
        errors = [said["error"] for _, said in world.notes.said]
        assert errors == [
            "the host '127.0.0.1' has an address that is not public",
            "the endpoint answered 302",
        ]
        headers, body = parts(listener.requests[1])
        verify("standard", SECRET, headers, body, world.clock.now_ms())
    (delivery,) = await world.deliveries()
    assert (delivery.status, delivery.attempts) == ("delivered", 3)


async def test_a_tenant_that_cannot_be_read_is_no_outage_of_the_others() -> None:
    """It is told about, and passed over."""
    world = World()
    await world.catalog.create("first", Tenant(slug="first", name="First"))
    await world.catalog.create("acme", Tenant(slug="acme", name="Acme"))
    await world.endpoint()
    await world.publish("e1")
    unreadable_for("first", world.catalog)
    await world.after(0)
    assert len(world.receiver.taken) == 1
    assert "service.failed" in world.notes.names
