"""API keys: who is let in, to do what, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.adapters.catalog.pepper import open_pepper
from perdure.adapters.catalog.sqlite import SqliteCatalog
from perdure.core.errors import InvalidInput, Refused, StoreRefused, Unavailable
from perdure.ports.catalog import TenantCatalog
from perdure.ports.entries import Key, Scope, Tenant
from perdure.server.keys import (
    CACHE_MS,
    EVERY_CAPABILITY,
    SCOPES,
    USE_NOTED_EVERY_MS,
    Keyring,
    Operation,
    Principal,
    refusal,
)
from perdure.server.setup import ensure_tenant
from perdure.server.tokens import CHECKSUM_CHARS, _checksum, make_token
from perdure.testing.clock import FakeClock
from tests.server.chance import fresh

PEPPER = b"p" * 32
FOREIGN = "nrn_0123456789abcdefghijklmnopqrstuv"


class Counting(MemoryCatalog):
    """A catalog that counts lookups of keys, and can fail or be held up."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__(now_ms)
        self.lookups = 0
        self.meanwhile: Callable[[], Any] | None = None
        self.fails = False

    async def locate(self, kind: Any, handle: str) -> Any:
        """Count, then let something happen between the read and its answer."""
        self.lookups += kind is Key
        found = await super().locate(kind, handle)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return found

    async def update(self, tenant: str, entry: Any) -> Any:
        """Fail if told to."""
        if self.fails:
            raise Unavailable("the disk is full")
        return await super().update(tenant, entry)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def catalog(clock: FakeClock) -> Counting:
    """Return an empty catalog."""
    return Counting(clock.now_ms)


@pytest.fixture
def keyring(catalog: Counting) -> Keyring:
    """Return the keyring over it."""
    return Keyring(catalog, PEPPER, fresh)


@pytest.fixture
async def ours(catalog: Counting) -> TenantCatalog:
    """Return a tenant."""
    return await ensure_tenant(catalog, "ours")


@pytest.fixture
async def theirs(catalog: Counting) -> TenantCatalog:
    """Return another tenant."""
    return await ensure_tenant(catalog, "theirs")


# The whole matrix: 200 stands for "goes on".
MATRIX = [
    # scope, read, run, manage, keys, work
    ("admin", 200, 200, 200, 200, 200),
    ("run", 200, 200, 403, 403, 403),
    ("read", 200, 403, 403, 403, 403),
    ("worker", 401, 401, 401, 401, 200),
    (None, 401, 401, 401, 401, 401),
]


class TestScopes:
    """What each kind of key is good for."""

    @pytest.mark.parametrize("row", MATRIX, ids=lambda row: str(row[0]))
    def test_every_operation_has_its_answer(self, row: tuple[Any, ...]) -> None:
        scope, *statuses = row
        principal = None if scope is None else Principal("t", scope, "k")
        answers = [refusal(principal, operation) or 200 for operation in get_args(Operation)]
        assert answers == statuses

    def test_the_matrix_is_complete(self) -> None:
        assert [row[0] for row in MATRIX] == [*get_args(Scope), None]
        assert set(SCOPES) == set(get_args(Scope))
        assert set().union(*SCOPES.values()) == set(get_args(Operation))

    @pytest.mark.parametrize(
        ("principal", "gard", "capabilities", "why"),
        [
            (Principal("t", "admin", "k"), None, ["llm", "tools"], None),
            (Principal("t", "admin", "k"), 3, [], None),
            (Principal("t", "run", "k"), None, [], "a key with the scope run"),
            (Principal("t", "worker", "k", gard=3), 3, ["tools"], None),
            (Principal("t", "worker", "k", gard=3), 4, ["tools"], "bound to the gard 3"),
            (Principal("t", "worker", "k", gard=3), None, [], "bound to the gard 3"),
            (Principal("t", "worker", "k", None, ("tools",)), 9, ["tools"], None),
            (Principal("t", "worker", "k", None, ("tools",)), 9, ["tools", "llm"], "llm"),
        ],
    )
    def test_a_worker_joins_as_its_key_says(
        self, principal: Principal, gard: int | None, capabilities: list[str], why: str | None
    ) -> None:
        said = principal.why_not_join(gard, capabilities)
        assert said is None if why is None else why in str(said)


class TestKnowing:
    """Which keys are known."""

    async def test_a_key_leads_to_its_tenant_and_its_bounds(
        self, keyring: Keyring, ours: TenantCatalog, theirs: TenantCatalog
    ) -> None:
        await keyring.issue(theirs, "admin")
        issued = await keyring.issue(
            ours, "worker", name="box", gard=3, capabilities=["tools", "tools"], expires_at=10
        )
        assert await keyring.authenticate(issued.token, 9) == Principal(
            "ours", "worker", issued.key.key_id, 3, ("tools",), 10, "box"
        )
        admin = await keyring.issue(ours, "admin")
        found = await keyring.authenticate(admin.token, 9)
        assert found == Principal("ours", "admin", admin.key.key_id, None, EVERY_CAPABILITY)
        assert issued.token not in repr(issued)

    async def test_what_cannot_be_a_key_is_never_looked_up(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        token = (await keyring.issue(ours, "admin")).token
        for wrong in (
            "",
            token[:-1],
            token[:-1] + "_",
            token[:20] + token[20:].swapcase(),
            f"{token} ",
            "prd_x",
        ):
            assert await keyring.authenticate(wrong, 0) is None
        assert catalog.lookups == 0

    async def test_a_right_id_with_a_wrong_secret_is_not_a_key(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        issued = await keyring.issue(ours, "admin")
        assert await keyring.authenticate(_with_id(issued.key.key_id), 0) is None
        assert catalog.lookups == 1
        assert await keyring.authenticate(issued.token, 0) is not None
        assert await Keyring(catalog, b"q" * 32, fresh).authenticate(issued.token, 0) is None

    async def test_an_answer_is_remembered_for_a_second(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        token = (await keyring.issue(ours, "admin")).token
        for now, lookups in ((0, 1), (CACHE_MS - 1, 1), (CACHE_MS, 2), (CACHE_MS - 1, 3)):
            assert await keyring.authenticate(token, now) is not None
            assert catalog.lookups == lookups
        unknown = _with_id("00000000000")
        for _ in range(5):
            assert await keyring.authenticate(unknown, 0) is None
        assert catalog.lookups == 4

    @pytest.mark.parametrize(("now", "good"), [(999, True), (1_000, False), (5_000, False)])
    async def test_a_key_ends_when_it_expires_although_it_is_remembered(
        self, keyring: Keyring, ours: TenantCatalog, now: int, good: bool
    ) -> None:
        token = (await keyring.issue(ours, "run", expires_at=1_000)).token
        assert await keyring.authenticate(token, 900) is not None
        assert (await keyring.authenticate(token, now) is not None) == good

    @pytest.mark.parametrize("bounds", [{"gard": 3}, {"capabilities": ["llm"]}])
    async def test_only_a_worker_is_bound(
        self, keyring: Keyring, ours: TenantCatalog, bounds: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput, match="scope worker"):
            await keyring.issue(ours, "run", **bounds)
        assert await ours.list(Key) == []


def _with_id(key_id: str) -> str:
    """Return a well-formed key that nobody has issued, with somebody's id."""
    made = iter([bytes(8), bytes(32)])
    unknown = make_token("admin", lambda size: next(made))
    body = unknown.replace(f"_{'0' * 11}_", f"_{key_id}_")[:-CHECKSUM_CHARS]
    return body + _checksum(body)


class TestBootstrap:
    """Keys that somebody else made."""

    async def test_it_is_an_admin_s_from_the_first_start_on(
        self, keyring: Keyring, ours: TenantCatalog
    ) -> None:
        assert await keyring.authenticate(FOREIGN, 0) is None
        key = await keyring.adopt(ours, FOREIGN)
        assert await keyring.adopt(ours, FOREIGN) == key
        found = await keyring.authenticate(FOREIGN, 0)
        assert found == Principal("ours", "admin", key.key_id, label="bootstrap")
        assert await keyring.authenticate(f"{FOREIGN}x", 0) is None

    async def test_once_revoked_it_stays_so(self, keyring: Keyring, ours: TenantCatalog) -> None:
        await keyring.issue(ours, "admin")
        key = await keyring.adopt(ours, FOREIGN)
        assert await keyring.revoke(ours, key.id, 5)
        assert (await keyring.adopt(ours, FOREIGN)).archived_at == 5
        assert await keyring.authenticate(FOREIGN, 9_999) is None

    async def test_it_is_not_taken_from_another_tenant(
        self, keyring: Keyring, ours: TenantCatalog, theirs: TenantCatalog
    ) -> None:
        await keyring.adopt(ours, FOREIGN)
        with pytest.raises(InvalidInput, match="another tenant"):
            await keyring.adopt(theirs, FOREIGN)

    @pytest.mark.parametrize(
        "token", ["", "short", "x" * 257, "prd_01234567890123456789", "\u00e9" * 20]
    )
    async def test_what_cannot_be_a_key_is_refused(
        self, keyring: Keyring, ours: TenantCatalog, token: str
    ) -> None:
        with pytest.raises(InvalidInput, match="16 to 256 ASCII"):
            await keyring.adopt(ours, token)


class TestEnding:
    """Revocation, expiry and rotation reach everybody who relies on a key."""

    async def test_a_revoked_key_is_forgotten_at_once(
        self, keyring: Keyring, ours: TenantCatalog
    ) -> None:
        issued = await keyring.issue(ours, "admin")
        other = await keyring.issue(ours, "admin")
        assert await keyring.authenticate(issued.token, 0) is not None
        assert await keyring.revoke(ours, issued.key.id, 0)
        assert await keyring.authenticate(issued.token, 0) is None
        assert await keyring.authenticate(other.token, 0) is not None
        assert not await keyring.revoke(ours, issued.key.id, 1)
        assert [key.id for key in await ours.list(Key)] == [other.key.id]

    async def test_a_foreign_key_cannot_be_revoked_or_rotated(
        self, keyring: Keyring, ours: TenantCatalog, theirs: TenantCatalog
    ) -> None:
        issued = await keyring.issue(ours, "admin")
        assert not await keyring.revoke(theirs, issued.key.id, 0)
        assert await keyring.rotate(theirs, issued.key.id, 0, 0) is None
        assert await keyring.authenticate(issued.token, 0) is not None
        assert await theirs.list(Key) == []

    async def test_what_was_read_before_a_revocation_does_not_outlive_it(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        issued = await keyring.issue(ours, "run")
        catalog.meanwhile = lambda: keyring.revoke(ours, issued.key.id, 0)
        assert await keyring.authenticate(issued.token, 0) is None

    async def test_open_sockets_are_told_once(self, keyring: Keyring, ours: TenantCatalog) -> None:
        issued, other = [await keyring.issue(ours, "worker") for _ in range(2)]
        told: list[str] = []
        keyring.watch(issued.key.key_id, lambda: told.append("first"))
        keyring.watch(issued.key.key_id, lambda: told.append("second"))
        keyring.watch(other.key.key_id, lambda: told.append("other"))
        stop = keyring.watch(issued.key.key_id, lambda: told.append("stopped"))
        stop()
        stop()
        await keyring.revoke(ours, issued.key.id, 0)
        await keyring.tick(1)
        assert told == ["first", "second"]
        keyring.watch(issued.key.key_id, lambda: told.append("too late"))
        assert told == ["first", "second", "too late"]

    async def test_a_tick_finds_what_expired_and_what_others_revoked(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        issued = [await keyring.issue(ours, "run", expires_at=at) for at in (None, 500, None, None)]
        told: list[int] = []
        for number, one in enumerate(issued):
            keyring.watch(one.key.key_id, lambda number=number: told.append(number))
        await keyring.tick(499)
        assert told == []
        elsewhere = Keyring(catalog, PEPPER, fresh)
        await elsewhere.revoke(ours, issued[2].key.id, 499)
        await ours.delete(Key, issued[3].key.id)
        await keyring.tick(500)
        assert told == [1, 2, 3]

    async def test_while_a_key_is_rotated_both_are_good(
        self, keyring: Keyring, ours: TenantCatalog
    ) -> None:
        old = await keyring.issue(ours, "worker", name="box", gard=2, capabilities=["llm"])
        new = await keyring.rotate(ours, old.key.id, now_ms=100, grace_ms=50)
        assert new is not None
        before = await keyring.authenticate(old.token, 149)
        after = await keyring.authenticate(new.token, 149)
        assert before is not None
        assert after is not None
        assert (before.gard, before.capabilities) == (after.gard, after.capabilities)
        assert (new.key.name, new.key.scope, new.key.expires_at) == ("box", "worker", None)
        assert await keyring.authenticate(old.token, 150) is None
        assert await keyring.authenticate(new.token, 150) is not None
        assert await keyring.rotate(ours, old.key.id, 150, 50) is None

    async def test_a_rotation_makes_no_key_live_longer(
        self, keyring: Keyring, ours: TenantCatalog
    ) -> None:
        old = await keyring.issue(ours, "run", expires_at=120)
        assert await keyring.rotate(ours, old.key.id, 100, 50) is not None
        assert await keyring.authenticate(old.token, 119) is not None
        assert await keyring.authenticate(old.token, 120) is None


class TestTheLastAdmin:
    """Whoever revokes it could never make a key again."""

    OTHERS: tuple[tuple[Scope, int | None, bool], ...] = (
        ("run", None, False),
        ("worker", None, False),
        ("admin", 900, False),
        ("admin", 50, False),
        ("admin", None, True),
    )

    @pytest.mark.parametrize(("scope", "expires_at", "may"), OTHERS)
    async def test_it_stays_unless_another_is_good_as_long(
        self, keyring: Keyring, ours: TenantCatalog, scope: Scope, expires_at: int | None, may: bool
    ) -> None:
        last = await keyring.issue(ours, "admin")
        other = await keyring.issue(ours, scope, expires_at=expires_at)
        if may:
            assert await keyring.revoke(ours, last.key.id, 100)
        else:
            with pytest.raises(Refused, match="make another one first"):
                await keyring.revoke(ours, last.key.id, 100)
            assert await keyring.revoke(ours, other.key.id, 100)
        assert (await keyring.authenticate(last.token, 101) is None) == may

    async def test_an_admin_of_another_tenant_is_none(
        self, keyring: Keyring, ours: TenantCatalog, theirs: TenantCatalog
    ) -> None:
        last = await keyring.issue(ours, "admin")
        await keyring.issue(theirs, "admin")
        with pytest.raises(Refused):
            await keyring.revoke(ours, last.key.id, 0)

    async def test_of_all_that_are_revoked_at_once_one_stays(
        self, keyring: Keyring, ours: TenantCatalog
    ) -> None:
        keys = [(await keyring.issue(ours, "admin")).key for _ in range(5)]
        ended = [keyring.revoke(ours, key.id, 0) for key in keys]
        done = await asyncio.gather(*ended, return_exceptions=True)
        assert [one for one in done if one is not True] == [done[-1]]
        assert len(await ours.list(Key)) == 1


class TestTenants:
    """The keys of a tenant that is put away are none."""

    async def test_they_are_refused_and_what_they_opened_is_closed(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        issued = await keyring.issue(ours, "admin")
        told: list[str] = []
        keyring.watch(issued.key.key_id, lambda: told.append("gone"))
        assert await keyring.authenticate(issued.token, 0) is not None
        located = await catalog.locate(Tenant, "ours")
        assert located is not None
        await ours.change(Tenant, located[1].id, lambda found: replace(found, archived_at=1))
        await keyring.tick(2)
        assert told == ["gone"]
        assert await keyring.authenticate(issued.token, 2) is None


class TestUse:
    """When a key was used last is known to the minute, and costs a request nothing."""

    async def test_it_is_noted_once_a_minute(self, keyring: Keyring, ours: TenantCatalog) -> None:
        issued = await keyring.issue(ours, "run")
        noted = []
        for now in (5, 6_000, 5 + USE_NOTED_EVERY_MS, 9 + USE_NOTED_EVERY_MS):
            await keyring.authenticate(issued.token, now)
            await keyring.tick(now)
            key = await ours.get(Key, issued.key.id)
            assert key is not None
            noted.append(key.last_used_at)
        assert noted == [5, 5, 5 + USE_NOTED_EVERY_MS, 5 + USE_NOTED_EVERY_MS]

    async def test_a_catalog_that_cannot_write_gets_it_later(
        self, keyring: Keyring, ours: TenantCatalog, catalog: Counting
    ) -> None:
        issued = await keyring.issue(ours, "run")
        await keyring.authenticate(issued.token, 5)
        catalog.fails = True
        with pytest.raises(Unavailable):
            await keyring.tick(6)
        catalog.fails = False
        await keyring.tick(7)
        key = await ours.get(Key, issued.key.id)
        assert key is not None
        assert key.last_used_at == 5


class TestSecrets:
    """Nothing that is kept or said leads to a key."""

    async def test_no_secret_is_in_any_file_or_log(
        self, tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        catalog = await SqliteCatalog.open(tmp_path / "catalog.db", clock.now_ms)
        pepper = open_pepper(tmp_path / "catalog.pepper", None, fresh)
        keyring = Keyring(catalog, pepper, fresh)
        ours = TenantCatalog(catalog, "ours")
        tokens = [(await keyring.issue(ours, scope)).token for scope in get_args(Scope)]
        rotated = await keyring.rotate(ours, 1, 0, 10)
        assert rotated is not None
        await keyring.adopt(ours, FOREIGN)
        tokens += [rotated.token, FOREIGN]
        await asyncio.gather(*(keyring.authenticate(token, 0) for token in tokens))
        await keyring.tick(1)
        await keyring.revoke(ours, 2, 2)
        with pytest.raises(InvalidInput) as refused:
            await keyring.adopt(TenantCatalog(catalog, "theirs"), FOREIGN)
        # While it is open there is a write-ahead log, after that there is not.
        seen = _content(tmp_path)
        await catalog.close()
        seen |= _content(tmp_path) | {"log": caplog.text.encode(), "error": repr(refused).encode()}
        assert {"catalog.db", "catalog.db-wal", "log"} <= set(seen)
        assert seen["catalog.db-wal"].count(b"key_id") >= len(tokens)
        secrets = [token.rsplit("_", 1)[1].encode() for token in tokens]
        secrets += [base64.b64encode(secret) for secret in secrets]
        del seen["catalog.pepper"]
        secrets += [pepper, pepper.hex().encode(), base64.b64encode(pepper)]
        assert [(name, secret) for name in seen for secret in secrets if secret in seen[name]] == []

    @pytest.mark.parametrize("given", ["a" * 32, "correct horse battery staple, and again"])
    def test_a_pepper_that_is_given_leaves_no_file(self, tmp_path: Path, given: str) -> None:
        path = tmp_path / "pepper"
        assert len(open_pepper(path, given, fresh)) == 32
        assert open_pepper(path, given, fresh) == open_pepper(path, given, fresh)
        assert not path.exists()

    def test_a_pepper_is_made_once_and_for_one_reader(self, tmp_path: Path) -> None:
        path = tmp_path / "pepper"
        (tmp_path / "pepper.new").write_bytes(b"what a crash left")
        pepper = open_pepper(path, None, fresh)
        assert open_pepper(path, "", fresh) == pepper == path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        assert [file.name for file in tmp_path.iterdir()] == ["pepper"]

    @pytest.mark.parametrize(
        ("mode", "content", "said"),
        [(0o640, b"p" * 32, "chmod 600"), (0o600, b"p" * 31, "31 bytes"), (0o600, b"", "0 bytes")],
    )
    def test_a_pepper_that_is_not_ours_alone_or_broken_is_refused(
        self, tmp_path: Path, mode: int, content: bytes, said: str
    ) -> None:
        path = tmp_path / "pepper"
        path.write_bytes(content)
        path.chmod(mode)
        with pytest.raises(StoreRefused, match=said):
            open_pepper(path, None, fresh)

    def test_a_short_pepper_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="31 characters"):
            open_pepper(tmp_path / "pepper", "a" * 31, fresh)


def _content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
