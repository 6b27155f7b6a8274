"""The suite of the `Catalog` port: every promise a sentence, every driver the same sentences.

    class TestMyCatalog(CatalogConformance):
        @pytest.fixture
        def open_catalog(self) -> OpenCatalog:
            return my_catalog   # an async context manager: async with my_catalog(clock) as catalog

The clock stands still until a test moves it. A catalog that outlives its process runs the tests of
`Lasting` as well: there, what is opened a second time is what was closed before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from msgspec.structs import replace

from perdure.core.errors import InvalidInput
from perdure.ports.catalog import Catalog, NameTaken, Stale, TenantCatalog
from perdure.ports.entries import (
    Agent,
    Answered,
    Delivery,
    Endpoint,
    Entry,
    Firing,
    Gard,
    Hook,
    Key,
    Port,
    Tenant,
    ToolRecord,
    Trigger,
    UntoldRun,
    unique_tool,
)
from perdure.testing.clock import FakeClock

OpenCatalog = Callable[[FakeClock], AbstractAsyncContextManager[Catalog]]
"""Opens a catalog that tells the time by the clock it is given, and closes it on leaving."""

OURS, THEIRS = "ours", "theirs"
NUMBER_TOO_LARGE = 2**70

# One entry of each kind, with a value in every field that a caller may set.
SAMPLES: list[Entry] = [
    Tenant(slug="acme", name="Acme"),
    Agent(
        name="bot",
        system_prompt="You help. \u00e9\U0001f600",
        purpose="help",
        status="running",
        model="m",
        model_config={"a": [1, {"b": None}], "c": 1.5, "d": 2**80},
        tools_config={"mode": "open"},
        max_steps=3,
    ),
    ToolRecord(
        name="pay", description="Pay.", input_schema={"type": "object"}, effect="once", gard=4
    ),
    Trigger(
        agent_id=1,
        name="daily",
        cron="@daily",
        message=[{"type": "text"}],
        timezone="Europe/Berlin",
        catch_up="once",
        conversation_key="k",
        enabled=False,
        last_fired_at=7,
        firing=Firing(minute=7, claimed_at=8, message={"a": None}, session_key="k"),
    ),
    Hook(
        agent_id=1,
        name="push",
        token_digest="d",  # noqa: S106
        message_path="a.b",
        conversation_key_path="c",
        signature_type="github",
        signing_secret="sealed",  # noqa: S106
        enabled=False,
    ),
    Endpoint(
        name="ci",
        url="https://a",
        signing_secrets=("sealed", "old"),
        events=("run.completed",),
        agent_id=1,
        enabled=False,
        disabled_because="gone",
        failures=3,
        retry_at=9,
    ),
    Delivery(
        endpoint_id=1,
        message_id="msg_1",
        event="run.completed",
        body="{}",
        status="failed",
        attempts=2,
        next_at=9,
        claimed=True,
        last_error="503",
    ),
    UntoldRun(name="r", told=3),
    Gard(
        name="box",
        status="ready",
        template="t",
        metadata={"a": 1},
        claim_digest="d",
        worker_id="w",
        node="n",
    ),
    Port(gard_id=1, internal_port=80, url="http://a", name="web", protocol="tcp"),
    Key(
        key_id="k",
        digest="d",
        name="mine",
        scope="worker",
        gard=3,
        capabilities=("tools",),
        expires_at=9,
        last_used_at=8,
    ),
    Answered(name="n", request="r", status=201, answer="sealed", claims=1),
]
KINDS = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.kind)


def hook(name: str, digest: str) -> Hook:
    """Return a hook that is not kept yet."""
    return Hook(agent_id=1, name=name, token_digest=digest)


def agent(name: str = "bot") -> Agent:
    """Return an agent that is not kept yet."""
    return Agent(name=name, system_prompt="You help.")


class _Kept:
    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the catalog's clock."""
        return FakeClock()

    @pytest.fixture
    async def catalog(self, open_catalog: OpenCatalog, clock: FakeClock) -> AsyncIterator[Catalog]:
        """Open a catalog."""
        async with open_catalog(clock) as catalog:
            yield catalog


class Keeping(_Kept):
    """What becomes of one entry."""

    @KINDS
    async def test_an_entry_comes_back_with_every_field(
        self, catalog: Catalog, clock: FakeClock, sample: Entry
    ) -> None:
        kept = await catalog.create(OURS, sample)
        now = clock.now_ms()
        assert kept == replace(sample, id=kept.id, revision=1, inserted_at=now, updated_at=now)
        assert kept.id > 0
        assert await catalog.get(OURS, type(sample), kept.id) == kept
        assert await catalog.list(OURS, type(sample)) == [kept]

    @KINDS
    async def test_an_id_is_never_given_twice(self, catalog: Catalog, sample: Entry) -> None:
        first = await catalog.create(OURS, sample)
        assert await catalog.delete(OURS, type(sample), first.id)
        second = await catalog.create(THEIRS, sample)
        assert second.id > first.id

    async def test_an_update_replaces_the_whole_entry(
        self, catalog: Catalog, clock: FakeClock
    ) -> None:
        kept = await catalog.create(OURS, replace(agent(), model_config={"a": 1, "b": 2}))
        clock.advance(5)
        changed = await catalog.update(OURS, replace(kept, model_config={"b": 3}, inserted_at=0))
        assert changed == replace(
            kept, model_config={"b": 3}, revision=2, updated_at=clock.now_ms()
        )
        assert await catalog.get(OURS, Agent, kept.id) == changed

    async def test_an_update_of_an_old_revision_changes_nothing(self, catalog: Catalog) -> None:
        kept = await catalog.create(OURS, agent())
        changed = await catalog.update(OURS, replace(kept, purpose="first"))
        with pytest.raises(Stale, match="no longer at revision 1"):
            await catalog.update(OURS, replace(kept, purpose="second"))
        assert await catalog.get(OURS, Agent, kept.id) == changed

    async def test_what_was_deleted_is_gone(self, catalog: Catalog) -> None:
        kept = await catalog.create(OURS, agent())
        assert await catalog.delete(OURS, Agent, kept.id)
        assert not await catalog.delete(OURS, Agent, kept.id)
        assert await catalog.get(OURS, Agent, kept.id) is None
        assert await catalog.find(OURS, Agent, "bot") is None
        with pytest.raises(Stale):
            await catalog.update(OURS, kept)
        assert (await catalog.create(OURS, agent())).id != kept.id

    async def test_nobody_changes_an_entry_by_holding_on_to_it(self, catalog: Catalog) -> None:
        config = {"a": 1}
        kept = await catalog.create(OURS, replace(agent(), model_config=config))
        config["a"] = kept.model_config["a"] = 2
        again = await catalog.get(OURS, Agent, kept.id)
        assert again is not None
        assert again.model_config == {"a": 1}

    @pytest.mark.parametrize("id", [-1, 0, 99, NUMBER_TOO_LARGE])
    async def test_an_id_that_was_not_given_reads_as_missing(
        self, catalog: Catalog, id: int
    ) -> None:
        await catalog.create(OURS, agent())
        assert await catalog.get(OURS, Agent, id) is None
        assert not await catalog.delete(OURS, Agent, id)
        assert await catalog.named(OURS, "run", id) is None
        with pytest.raises(Stale):
            await catalog.update(OURS, replace(agent(), id=id, revision=1))

    @pytest.mark.parametrize(
        "broken",
        [
            replace(agent(), name="\ud800"),
            replace(agent(), model_config={"a": object()}),
        ],
        ids=["text", "type"],
    )
    async def test_what_json_cannot_hold_is_refused(self, catalog: Catalog, broken: Agent) -> None:
        with pytest.raises(InvalidInput, match="the agent cannot be kept"):
            await catalog.create(OURS, broken)
        kept = await catalog.create(OURS, agent())
        with pytest.raises(InvalidInput):
            await catalog.update(OURS, replace(broken, id=kept.id, revision=1))
        assert await catalog.list(OURS, Agent) == [kept]


class Naming(_Kept):
    """Names are unique in a tenant, handles everywhere."""

    @pytest.mark.parametrize(
        "sample", [s for s in SAMPLES if s.unique], ids=lambda sample: sample.kind
    )
    async def test_a_name_finds_its_entry_and_is_taken_once(
        self, catalog: Catalog, sample: Entry
    ) -> None:
        kept = await catalog.create(OURS, sample)
        assert await catalog.find(OURS, type(sample), str(sample.unique)) == kept
        with pytest.raises(NameTaken, match=f"another {sample.kind} with this name") as taken:
            await catalog.create(OURS, sample)
        assert taken.value.field == "name"

    async def test_a_name_is_free_after_a_rename_and_after_archiving(
        self, catalog: Catalog
    ) -> None:
        first = await catalog.create(OURS, agent("a"))
        first = await catalog.update(OURS, replace(first, name="b"))
        second = await catalog.create(OURS, agent("a"))
        with pytest.raises(NameTaken):
            await catalog.update(OURS, replace(second, name="b"))
        first = await catalog.update(OURS, replace(first, archived_at=5))
        second = await catalog.update(OURS, replace(second, name="b"))
        assert await catalog.find(OURS, Agent, "a") is None
        assert await catalog.find(OURS, Agent, "b") == second
        with pytest.raises(NameTaken):
            await catalog.update(OURS, replace(first, archived_at=None))

    async def test_a_refused_entry_takes_no_name(self, catalog: Catalog) -> None:
        await catalog.create(OURS, hook("a", "same"))
        with pytest.raises(NameTaken) as taken:
            await catalog.create(OURS, hook("b", "same"))
        assert taken.value.field == "token_digest"
        assert await catalog.find(OURS, Hook, "b") is None
        await catalog.create(OURS, hook("b", "other"))

    @pytest.mark.parametrize(
        "sample", [s for s in SAMPLES if s.handle], ids=lambda sample: sample.kind
    )
    async def test_a_handle_finds_its_entry_and_tenant(
        self, catalog: Catalog, sample: Entry
    ) -> None:
        kept = await catalog.create(OURS, sample)
        assert await catalog.locate(type(sample), str(sample.handle)) == (OURS, kept)
        assert await catalog.locate(type(sample), "another") is None
        assert await catalog.locate(type(sample), "\ud800") is None
        with pytest.raises(NameTaken) as taken:
            await catalog.create(THEIRS, sample)
        assert taken.value.field == sample.handle_field
        archived = await catalog.update(OURS, replace(kept, archived_at=3))
        assert await catalog.locate(type(sample), str(sample.handle)) == (OURS, archived)

    async def test_a_tool_of_a_gard_is_another_one(self, catalog: Catalog) -> None:
        tools = [
            await catalog.create(
                OURS, ToolRecord(name="pay", description="", input_schema={}, gard=gard)
            )
            for gard in (None, 1, 2)
        ]
        for tool in tools:
            name = unique_tool("pay", tool.gard)
            assert await catalog.find(OURS, ToolRecord, name) == tool

    async def test_names_of_several_kinds_do_not_meet(self, catalog: Catalog) -> None:
        await catalog.create(OURS, agent("same"))
        await catalog.create(OURS, hook("same", "same"))
        await catalog.create(OURS, Key(key_id="same", digest="d", scope="read"))
        assert await catalog.find(OURS, Trigger, "same") is None
        assert await catalog.locate(Tenant, "same") is None


class Listing(_Kept):
    """Lists are complete, in order, and in pages that follow each other."""

    async def test_pages_follow_each_other_in_both_directions(self, catalog: Catalog) -> None:
        ids = [(await catalog.create(OURS, agent(str(n)))).id for n in range(5)]
        for newest_first, order in ((False, ids), (True, ids[::-1])):
            found, after = list[int](), None
            while page := await catalog.list(
                OURS, Agent, after=after, limit=2, newest_first=newest_first
            ):
                assert len(page) <= 2
                after = page[-1].id
                found += [entry.id for entry in page]
            assert found == order
        assert await catalog.list(OURS, Agent, limit=0) == []

    async def test_a_page_is_full_although_others_are_left_out(self, catalog: Catalog) -> None:
        kept = [await catalog.create(OURS, agent(str(n))) for n in range(5)]
        for entry in kept[:3]:
            await catalog.update(OURS, replace(entry, archived_at=1))
        assert await catalog.list(OURS, Agent, limit=2) == kept[3:]
        everything = await catalog.list(OURS, Agent, archived=True)
        assert [entry.id for entry in everything] == [entry.id for entry in kept]

    async def test_what_belongs_to_one_is_listed_apart(self, catalog: Catalog) -> None:
        ports = [
            await catalog.create(OURS, Port(gard_id=gard, internal_port=80)) for gard in (1, 2, 1)
        ]
        assert await catalog.list(OURS, Port, of=1) == [ports[0], ports[2]]
        assert await catalog.list(OURS, Port, of=1, after=ports[0].id) == [ports[2]]
        assert await catalog.list(OURS, Port, of=3) == []
        assert await catalog.list(OURS, Port, of=NUMBER_TOO_LARGE) == []
        assert await catalog.list(OURS, Port, after=NUMBER_TOO_LARGE) == []

    async def test_tenants_are_listed_until_they_are_archived(self, catalog: Catalog) -> None:
        kept = [await catalog.create(slug, Tenant(slug=slug, name=slug)) for slug in "bac"]
        assert await catalog.tenants() == kept
        await catalog.update("a", replace(kept[1], archived_at=1))
        assert await catalog.tenants() == [kept[0], kept[2]]


class Sharing(_Kept):
    """Tenants never see each other, and of all that want the same thing one gets it."""

    @KINDS
    async def test_an_entry_of_another_tenant_reads_as_missing(
        self, catalog: Catalog, sample: Entry
    ) -> None:
        kept = await catalog.create(OURS, sample)
        kind = type(sample)
        assert await catalog.get(THEIRS, kind, kept.id) is None
        assert await catalog.find(THEIRS, kind, str(sample.unique)) is None
        assert await catalog.list(THEIRS, kind, archived=True) == []
        assert not await catalog.delete(THEIRS, kind, kept.id)
        with pytest.raises(Stale) as theirs:
            await catalog.update(THEIRS, kept)
        assert await catalog.get(OURS, kind, kept.id) == kept
        await catalog.delete(OURS, kind, kept.id)
        with pytest.raises(Stale) as missing:
            await catalog.update(THEIRS, kept)
        assert str(theirs.value) == str(missing.value)

    async def test_two_tenants_may_use_the_same_names(self, catalog: Catalog) -> None:
        ours, theirs = [await catalog.create(tenant, agent()) for tenant in (OURS, THEIRS)]
        assert ours.id != theirs.id
        assert await catalog.find(OURS, Agent, "bot") == ours
        assert await catalog.find(THEIRS, Agent, "bot") == theirs
        assert await catalog.numbers(OURS, "run", ["r"]) != await catalog.numbers(
            THEIRS, "run", ["r"]
        )

    async def test_of_concurrent_claims_exactly_one_wins(self, catalog: Catalog) -> None:
        trigger = await catalog.create(
            OURS, Trigger(agent_id=1, name="t", cron="* * * * *", message="go")
        )
        for minute in range(1, 4):
            read = await catalog.get(OURS, Trigger, trigger.id)
            assert read is not None
            claims = [
                catalog.update(OURS, replace(read, last_fired_at=minute, message=n))
                for n in range(20)
            ]
            done = await asyncio.gather(*claims, return_exceptions=True)
            winners = [entry for entry in done if isinstance(entry, Trigger)]
            assert len(winners) == 1
            assert all(isinstance(lost, Stale) for lost in done if lost not in winners)
            assert await catalog.get(OURS, Trigger, trigger.id) == winners[0]

    async def test_of_concurrent_entries_with_one_name_exactly_one_is_kept(
        self, catalog: Catalog
    ) -> None:
        done = await asyncio.gather(
            *(catalog.create(OURS, agent()) for _ in range(20)), return_exceptions=True
        )
        kept = [entry for entry in done if isinstance(entry, Agent)]
        assert await catalog.list(OURS, Agent) == kept
        assert len(kept) == 1

    async def test_concurrent_changes_by_hand_all_happen(self, catalog: Catalog) -> None:
        ours = TenantCatalog(catalog, OURS)
        kept = await ours.create(agent())

        def one_more(entry: Agent) -> Agent:
            return replace(entry, max_steps=entry.max_steps + 1)

        await asyncio.gather(*(ours.change(Agent, kept.id, one_more) for _ in range(5)))
        last = await ours.change(Agent, kept.id, lambda entry: entry)
        assert last is not None
        assert (last.max_steps, last.revision) == (kept.max_steps + 5, 6)
        assert await TenantCatalog(catalog, THEIRS).change(Agent, kept.id, one_more) is None

    async def test_concurrent_puts_of_one_name_make_one_entry(self, catalog: Catalog) -> None:
        ours = TenantCatalog(catalog, OURS)
        same = [agent() for _ in range(5)]
        kept = await asyncio.gather(*map(ours.put, same))
        assert kept == [kept[0]] * 5
        changed = await ours.put(replace(agent(), purpose="new"))
        assert (changed.id, changed.revision, changed.purpose) == (kept[0].id, 2, "new")
        assert await ours.list(Agent) == [changed]


class Numbering(_Kept):
    """Numbers are stable, and nobody's but their tenant's."""

    async def test_a_number_is_given_once_and_leads_back(self, catalog: Catalog) -> None:
        first = await catalog.numbers(OURS, "run", ["a", "b", "a"])
        assert first[0] == first[2] != first[1]
        again = await catalog.numbers(OURS, "run", ["c", "b"])
        assert again[1] == first[1]
        assert again[0] not in first
        assert [await catalog.named(OURS, "run", n) for n in first] == ["a", "b", "a"]
        assert await catalog.numbers(OURS, "run", []) == []

    async def test_runs_and_sessions_are_numbered_apart(self, catalog: Catalog) -> None:
        (run,) = await catalog.numbers(OURS, "run", ["a"])
        (session,) = await catalog.numbers(OURS, "session", ["b"])
        assert run == session
        assert await catalog.named(OURS, "run", run) == "a"
        assert await catalog.named(OURS, "session", session) == "b"

    async def test_the_number_of_another_tenant_reads_as_missing(self, catalog: Catalog) -> None:
        (number,) = await catalog.numbers(OURS, "run", ["a"])
        assert await catalog.named(THEIRS, "run", number) is None

    async def test_concurrent_askers_get_the_same_numbers(self, catalog: Catalog) -> None:
        ids = [str(n) for n in range(30)]
        asked = [ids, ids[::-1], ids[10:], ids[:20]]
        got = await asyncio.gather(*(catalog.numbers(OURS, "run", some) for some in asked))
        numbers = dict(zip(ids, got[0], strict=True))
        assert got == [[numbers[one] for one in some] for some in asked]
        assert len(set(numbers.values())) == len(ids)

    async def test_an_id_that_is_no_text_is_refused(self, catalog: Catalog) -> None:
        with pytest.raises(InvalidInput):
            await catalog.numbers(OURS, "run", ["a", "\ud800"])


class CatalogConformance(Keeping, Naming, Listing, Sharing, Numbering):
    """Every promise of the port; a driver adds the fixture `open_catalog`."""


class Lasting(_Kept):
    """What a catalog that outlives its process promises besides."""

    async def test_everything_is_there_again(
        self, open_catalog: OpenCatalog, clock: FakeClock
    ) -> None:
        async with open_catalog(clock) as catalog:
            kept = [await catalog.create(OURS, sample) for sample in SAMPLES]
            deleted = await catalog.create(OURS, agent("deleted"))
            await catalog.delete(OURS, Agent, deleted.id)
            numbers = await catalog.numbers(OURS, "run", ["a", "b"])
        async with open_catalog(clock) as catalog:
            for entry in kept:
                assert await catalog.list(OURS, type(entry)) == [entry]
            assert await catalog.numbers(OURS, "run", ["b", "a"]) == numbers[::-1]
            assert (await catalog.create(OURS, agent("next"))).id > deleted.id
            with pytest.raises(NameTaken):
                await catalog.create(OURS, SAMPLES[1])
