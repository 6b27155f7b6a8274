"""The scheduler: each minute once, on any number of nodes, whatever dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.core.errors import KeyReused, LimitExceeded, PerdureError, Unavailable
from perdure.ports.entries import Firing, Tenant, Trigger
from perdure.server.scheduler import RESEND_MS, Scheduler, due
from perdure.testing.clock import FakeClock
from tests.server.mortal import Catalogs, Life, Notes, dying, unreadable_for

MINUTE = 60_000


def ms(text: str) -> int:
    """Milliseconds since 1970 of a time on 2 March 2026, a Monday, in UTC."""
    return int(datetime.fromisoformat(f"2026-03-02 {text}").replace(tzinfo=UTC).timestamp() * 1000)


class World:
    """A clock, a catalog, and a store that accepts each message once for its key."""

    def __init__(self, now: str = "08:00") -> None:
        self.clock = FakeClock(ms(now))
        self.catalog = MemoryCatalog(self.clock.now_ms)
        self.accepted: dict[tuple[str, int, str | None, str], Any] = {}
        self.sends = 0
        self.troubles: list[Exception] = []
        self.notes = Notes()

    async def trigger(self, cron: str = "0 9 * * *", **more: Any) -> Trigger:
        """A trigger of our only tenant."""
        if not await self.catalog.tenants():
            await self.catalog.create("acme", Tenant(slug="acme", name="Acme"))
        wanted = {"agent_id": 7, "name": cron, "cron": cron, "message": "go", **more}
        return await self.catalog.create("acme", Trigger(**wanted))

    async def now(self, trigger: Trigger) -> Trigger:
        """The trigger as it is on record."""
        found = await self.catalog.get("acme", Trigger, trigger.id)
        assert found is not None
        return found

    def node(self, life: Life | None = None, jitter_ms: int = 0) -> Scheduler:
        """A node, which may be about to die."""
        life = life or Life()

        async def send(*message: Any) -> None:
            await asyncio.sleep(0)
            await life.step(lambda: self._accept(*message))

        catalog = Catalogs(self.catalog, life)
        return Scheduler(catalog, send, self.clock, self.notes, jitter_ms)  # type: ignore[arg-type]

    async def _accept(
        self, tenant: str, agent: int, content: Any, session: str | None, key: str
    ) -> None:
        self.sends += 1
        if self.troubles:
            raise self.troubles.pop(0)
        if self.accepted.setdefault((tenant, agent, session, key), content) != content:
            raise KeyReused(key)

    async def at(self, time: str, *nodes: Scheduler) -> None:
        """Have the nodes look, all at the same time."""
        self.clock.advance(ms(time) - self.clock.now_ms())
        await asyncio.gather(*(node.run_once() for node in nodes or (self.node(),)))

    @property
    def minutes(self) -> list[str]:
        """The minutes whose message was accepted."""
        stamps = [int(key.rpartition("_")[2]) / 1000 for *_, key in self.accepted]
        return [datetime.fromtimestamp(stamp, UTC).strftime("%H:%M") for stamp in sorted(stamps)]


# What is on record, the time of a look, and the minute that is due.
DUE = [
    ({}, "09:00", "09:00"),
    ({}, "09:00:59.999", "09:00"),
    ({}, "09:01", None),
    ({}, "08:59:59.999", None),
    ({"enabled": False}, "09:00", None),
    ({"last_fired_at": ms("09:00")}, "09:00:30", None),
    ({"firing": Firing(ms("08:00"), ms("08:00"), "go", None)}, "09:00", None),
    # a clock that was set back does not bring a minute back
    ({"last_fired_at": ms("09:00"), "cron": "* * * * *"}, "08:59:30", None),
    # a trigger made in a minute begins with the next; one that is changed in a minute keeps it
    ({"inserted_at": ms("09:00:10")}, "09:00:30", None),
    ({"updated_at": ms("09:00:10")}, "09:00:30", "09:00"),
    # missed minutes: the first stands for all of them, and this moment's comes before them
    ({"catch_up": "once"}, "11:30", "09:00"),
    ({"catch_up": "once", "cron": "0 * * * *"}, "11:30", "09:00"),
    ({"catch_up": "once", "cron": "0 * * * *"}, "11:00:20", "11:00"),
    ({"catch_up": "once", "cron": "* * * * *"}, "11:00:20", "11:00"),
    ({"catch_up": "once", "updated_at": ms("10:30")}, "11:30", None),
    ({"catch_up": "once", "enabled": False}, "11:30", None),
    # 9:00 in Berlin
    ({"timezone": "Europe/Berlin"}, "08:00:10", "08:00"),
]


@pytest.mark.parametrize("on_record, time, expected", DUE)
def test_what_is_due(on_record: dict[str, Any], time: str, expected: str | None) -> None:
    """As a table."""
    stamps = {"inserted_at": ms("07:00"), "updated_at": ms("07:00"), "last_fired_at": ms("08:00")}
    if on_record.get("timezone"):
        stamps["last_fired_at"] = ms("07:30")
    known = {"agent_id": 1, "name": "t", "cron": "0 9 * * *", "message": "go", **stamps}
    assert due(Trigger(**{**known, **on_record}), ms(time)) == (expected and ms(expected))


async def test_a_trigger_sends_its_message() -> None:
    """With a session of its own, or in the conversation it names; last_fired_at is its minute."""
    world = World()
    fresh = await world.trigger()
    talking = await world.trigger("0 9 * * MON", message=[{"type": "text"}], conversation_key="k")
    await world.at("09:00:02")
    assert world.accepted == {
        ("acme", 7, None, f"trigger_{fresh.id}_{ms('09:00')}"): "go",
        ("acme", 7, "k", f"trigger_{talking.id}_{ms('09:00')}"): [{"type": "text"}],
    }
    for trigger in (fresh, talking):
        found = await world.now(trigger)
        assert (found.last_fired_at, found.firing) == (ms("09:00"), None)
    assert world.notes.names == ["trigger.fired"] * 2


async def test_many_nodes_fire_each_minute_once() -> None:
    """All look at the same moment; one of them wins, and the message is sent one time."""
    world = World()
    for cron in ("* * * * *", "*/2 * * * *"):
        await world.trigger(cron)
    nodes = [world.node() for _ in range(7)]
    for minute in range(1, 7):
        await world.at(f"08:0{minute}:01", *nodes)
        await world.at(f"08:0{minute}:40", *nodes)
    assert world.minutes == sorted([*(f"08:0{n}" for n in range(1, 7)), "08:02", "08:04", "08:06"])
    assert world.sends == 9
    assert world.notes.names == ["trigger.fired"] * 9


MOMENTS = 6
"""Before and after each of claim, send and settle."""


@pytest.mark.parametrize("moment", range(1, MOMENTS + 1))
async def test_a_death_at_any_moment_costs_nothing(moment: int) -> None:
    """The next node finds what the dead one owed, and nothing is sent as a second message."""
    world = World()
    trigger = await world.trigger()
    life = Life(dies_at=moment)
    with dying():
        await world.at("09:00:01", world.node(life))
    assert life.moments == moment
    # the trigger says something else by now; what was claimed is what was claimed
    found = await world.now(trigger)
    await world.catalog.update("acme", replace(found, message="new", conversation_key="other"))
    await world.at("09:00:32", world.node(), world.node())
    assert world.minutes == ["09:00"]
    assert set(world.accepted.values()) == {"new" if moment == 1 else "go"}
    found = await world.now(trigger)
    assert (found.last_fired_at, found.firing) == (ms("09:00"), None)


async def test_there_are_no_other_moments() -> None:
    """Else the test above would leave some out."""
    world = World()
    await world.trigger()
    life = Life()
    await world.at("09:00:01", world.node(life))
    assert life.moments == MOMENTS


async def test_a_firing_under_way_is_left_to_who_claimed_it() -> None:
    """For a while; then it is taken over, also after its minute, and then the next one follows."""
    world = World()
    trigger = await world.trigger("* * * * *")
    life = Life(dies_at=3)
    with dying():
        await world.at("08:01:50", world.node(life))
    await world.at("08:02:10")
    assert (world.minutes, world.sends) == ([], 0)
    found = await world.now(trigger)
    assert found.firing is not None
    assert found.firing.claimed_at + RESEND_MS == ms("08:02:20")
    await world.at("08:02:20")
    assert world.minutes == ["08:01", "08:02"]


async def test_a_slow_node_settles_its_own_firing_only() -> None:
    """It sleeps in the middle of a send; others take over, and are at the next minute by then."""
    world = World()
    trigger = await world.trigger("* * * * *")
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def send(*message: Any) -> None:
        asleep.set()
        await awake.wait()

    world.clock.advance(ms("08:01:01") - world.clock.now_ms())
    slow = Scheduler(world.catalog, send, world.clock, world.notes)
    task = asyncio.create_task(slow.run_once())
    await asleep.wait()
    await world.at("08:01:40")
    with dying():
        await world.at("08:02:01", world.node(Life(dies_at=2)))
    awake.set()
    await task
    found = await world.now(trigger)
    assert found.firing is not None
    assert found.firing.minute == ms("08:02")
    await world.at("08:02:40")
    assert world.minutes == ["08:01", "08:02"]


async def test_a_store_that_cannot_answer_is_asked_again() -> None:
    """Under the same key, until it answers."""
    world = World()
    await world.trigger()
    world.troubles = [Unavailable("gone"), Unavailable("gone")]
    for time in ("09:00:01", "09:01:01", "09:02:01", "09:03:01"):
        await world.at(time)
    assert (world.minutes, world.sends) == (["09:00"], 3)
    assert world.notes.names == ["trigger.waits", "trigger.waits", "trigger.fired"]


@pytest.mark.parametrize("trouble", [LimitExceeded("full"), PerdureError("no"), KeyReused("other")])
async def test_a_message_that_is_refused_is_not_sent_again(trouble: PerdureError) -> None:
    """It is told; the next minute is a new one."""
    world = World()
    await world.trigger("* * * * *")
    world.troubles = [trouble]
    await world.at("08:01:01")
    await world.at("08:02:01")
    assert (world.minutes, world.sends) == (["08:02"], 2)
    name, said = world.notes.said[0]
    assert (name, said["minute"], said["error"]) == ("trigger.refused", ms("08:01"), str(trouble))


async def test_a_trigger_that_breaks_something_breaks_it_alone() -> None:
    """A bug in the sending of one is no outage of the others."""
    world = World()
    bad = await world.trigger("0 9 * * *")
    odd = await world.trigger("0 9 * 3 *")
    await world.catalog.update("acme", replace(odd, cron="@reboot"))
    good = await world.trigger("0 9 2 3 *")
    world.troubles = [TypeError("a bug")]
    await world.at("09:00:01")
    assert [(await world.now(one)).firing is None for one in (bad, good)] == [False, True]
    assert world.minutes == ["09:00"]
    assert sorted(world.notes.names) == ["service.failed", "trigger.fired", "trigger.invalid"]
    await world.at("09:01:01")
    assert world.minutes == ["09:00", "09:00"]


async def meanwhile(change: Callable[[World, Trigger], Any]) -> World:
    """Have a node read a trigger that is due, and change it before the node claims it."""
    world = World()
    trigger = await world.trigger()
    world.clock.advance(ms("09:00:01") - world.clock.now_ms())
    node = world.node()
    catalog = node._catalog
    catalog.before_update.append(lambda: change(world, trigger))  # type: ignore[attr-defined]
    await node.run_once()
    return world


async def test_a_trigger_paused_or_deleted_meanwhile_is_not_fired() -> None:
    """Once the change is on record no firing begins, whatever a node has read before."""
    paused = await meanwhile(
        lambda world, t: world.catalog.update("acme", replace(t, enabled=False))
    )
    deleted = await meanwhile(lambda world, t: world.catalog.delete("acme", Trigger, t.id))
    for world in (paused, deleted):
        await world.at("09:00:40")
        assert world.sends == 0


async def test_a_trigger_changed_meanwhile_is_fired_as_it_is_now() -> None:
    """By the next look, still within its minute."""
    world = await meanwhile(
        lambda world, t: world.catalog.update("acme", replace(t, message="new"))
    )
    assert world.sends == 0
    await world.at("09:00:40")
    assert list(world.accepted.values()) == ["new"]


async def test_a_trigger_deleted_after_its_claim_stays_deleted() -> None:
    """Settling does not bring it back."""
    world = World()
    trigger = await world.trigger()
    node = world.node()
    node._catalog.before_update.extend([  # type: ignore[attr-defined]
        lambda: asyncio.sleep(0),
        lambda: world.catalog.delete("acme", Trigger, trigger.id),
    ])  # fmt: skip
    await world.at("09:00:01", node)
    assert (world.minutes, await world.catalog.get("acme", Trigger, trigger.id)) == (
        ["09:00"],
        None,
    )


@pytest.mark.parametrize(
    "policy, expected", [("skip", ["12:00"]), ("once", ["09:00", "12:00"])]
)  # fmt: skip
async def test_minutes_that_nobody_saw(policy: str, expected: list[str]) -> None:
    """Down from 8:00 to 11:30: what would have come at 9, 10 and 11 comes never, or once."""
    world = World()
    await world.trigger("0 * * * *", catch_up=policy)
    for time in ("11:30", "11:31", "11:32", "12:00:01", "12:01"):
        await world.at(time, world.node(), world.node())
    assert world.minutes == expected


async def test_a_pause_is_not_an_outage() -> None:
    """What fell into it is not caught up when it ends."""
    world = World()
    trigger = await world.trigger("0 * * * *", catch_up="once", enabled=False)
    await world.at("11:30")
    await world.catalog.update("acme", replace(trigger, enabled=True))
    await world.at("11:30:20")
    await world.at("12:00:01")
    assert world.minutes == ["12:00"]


async def test_a_thousand_triggers_at_midnight() -> None:
    """All of them are sent, a few at a time."""
    world = World()
    for number in range(1_000):
        await world.trigger("@hourly", name=f"t{number}")
    together, most = 0, 0

    async def send(*message: Any) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0)
        together -= 1

    node = Scheduler(world.catalog, send, world.clock, world.notes)
    await world.at("09:00:01", node)
    assert (world.notes.names, most) == (["trigger.fired"] * 1_000, 16)


async def settle() -> None:
    """Let tasks run until they wait for the clock."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_it_looks_every_minute_and_a_little_later_on_each_node() -> None:
    """At once, then after every full minute; and not at all once it is stopped."""
    world = World("08:58:30")
    await world.trigger("* * * * *", catch_up="once")
    node = world.node(jitter_ms=1_000)
    node.start()
    moments = []
    for _ in range(60 * 3):
        world.clock.advance(1_000)
        await settle()
        moments.append(len(world.accepted))
    assert world.minutes == ["08:59", "09:00", "09:01"]
    assert moments.index(1) in (29, 30)
    await node.stop()
    assert world.clock.next_at_ms() is None


async def test_a_look_that_fails_is_followed_by_another() -> None:
    """The catalog is away for a moment: five seconds later it is asked again."""
    world = World("08:59:59")
    await world.trigger()
    node = world.node()

    async def away() -> Any:
        raise Unavailable("the catalog is away")

    real, world.catalog.tenants = world.catalog.tenants, away  # type: ignore[method-assign]
    node.start()
    world.clock.advance(1_000)
    await settle()
    assert world.notes.said == [
        ("service.failed", {"service": "scheduler",
                            "error": "Unavailable('the catalog is away')"})
    ]  # fmt: skip
    world.catalog.tenants = real  # type: ignore[method-assign]
    world.clock.advance(5_000)
    await settle()
    assert world.minutes == ["09:00"]
    await node.stop()


async def test_a_tenant_that_cannot_be_read_is_no_outage_of_the_others() -> None:
    """It is told about, and passed over."""
    world = World()
    await world.catalog.create("first", Tenant(slug="first", name="First"))
    await world.catalog.create("acme", Tenant(slug="acme", name="Acme"))
    await world.trigger()
    unreadable_for("first", world.catalog)
    await world.at("09:00:01")
    assert world.minutes == ["09:00"]
    assert "service.failed" in world.notes.names
