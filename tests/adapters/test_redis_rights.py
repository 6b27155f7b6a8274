"""What docs/operating/redis.md says about the rights of our user is enough; URLs say no secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.adapters.catalog.redis import RedisCatalog
from perdure.adapters.cluster.redis import RedisCluster
from perdure.adapters.redis.place import place_of
from perdure.adapters.stores.redis import RedisStore
from perdure.core.errors import InvalidInput, StoreRefused, Unavailable
from perdure.ports.cluster import NodeCard
from perdure.ports.entries import Agent
from perdure.testing.conformance.claimant import created
from perdure.testing.servers.redis import RedisServer
from tests.adapters.redis_servers import started

PAGE = Path(__file__).parents[2] / "docs" / "operating" / "redis.md"


def with_user(server: RedisServer, *others: str) -> str:
    """Make the user that the page describes, with other rights besides; return the URL for it."""
    found = re.search(r"^ACL SETUSER (perdure .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert server.ask("ACL", "SETUSER", *found[1].split(), *others) == b"+OK\r\n"
    return server.url.replace("redis://", "redis://perdure:PASSWORD@")


async def test_a_user_with_these_rights_can_do_everything() -> None:
    with started() as server:
        url = with_user(server)
        store, catalog, cluster = (
            await RedisStore.open(url), await RedisCatalog.open(url), RedisCluster(url)
        )  # fmt: skip
        await created(store)
        await catalog.create("t", Agent(name="a", system_prompt="p"))
        await cluster.join(NodeCard(id="n"), 1_000, lambda message: None)
        assert [card.id for card in await cluster.nodes()] == ["n"]
        await cluster.leave()
        await catalog.close()
        await store.close()


async def test_a_user_who_may_not_ask_for_the_settings_is_refused() -> None:
    with started() as server, pytest.raises(StoreRefused, match="config"):
        await RedisStore.open(with_user(server, "-config"))


async def test_a_user_who_may_not_write_is_told() -> None:
    with started() as server, pytest.raises(Unavailable, match="lacks a right") as refused:
        await RedisStore.open(with_user(server, "-evalsha"))
    assert "PASSWORD" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h:port/0", "cannot be read"),
        ("redis://:secret/more@h/0", "percent-encoded"),
        ("http://h/0", "cannot be read"),
        ("redis://h/0?prefix=", "letters, digits"),
        ("redis://h/0?prefix={a}", "letters, digits"),
        ("redis://h/0?prefx=a", "not prefx"),
        ("redis://h/0?prefix=a&prefix=b", "not one twice"),
        ("redis://h/0?replicas=-1", "from 0 to 100"),
        ("redis://h/0?replicas=101", "from 0 to 100"),
        ("redis://h/0?wait_aof=yes", "from 0 to 1"),
        ("redis://h/0?ssl_ca_certs=a", "rediss://"),
    ],
)
def test_a_url_that_cannot_be_is_refused_and_its_password_not_shown(url: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        place_of(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@h:1/2?replicas=2", "redis://h:1/2"),
        ("redis://h", "redis://h:6379/0"),
        ("rediss://[::1]:5/0", "rediss://[::1]:5/0"),
        ("unix:///run/redis.sock?prefix=a-b_1", "unix:///run/redis.sock"),
    ],
)
def test_a_place_is_shown_without_its_password(url: str, shown: str) -> None:
    assert place_of(url).shown == shown
