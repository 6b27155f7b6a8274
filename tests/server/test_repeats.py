"""Idempotency keys over HTTP: a request that comes again is the same request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.api.operations import OPERATIONS, Operation
from perdure.core.errors import Unavailable
from perdure.ports.entries import Answered
from perdure.server import repeats
from tests.server.house import BODIES, BOT, House, Things, echo, furnished, house

KEY = {"Idempotency-Key": "k-1"}
TAKING = [operation for operation in OPERATIONS if operation.idempotent]
REFUSED = {"resolve_call", "decide_approval", "create_standing_approval", "raise_budget"}
GOOD = [operation for operation in TAKING if operation.id not in REFUSED]
"""What these answer takes more than an agent; see the tests of dispatch, approvals and budgets."""

DAY_MS = repeats.KEPT_MS


async def prepared(h: House, operation: Operation) -> tuple[str, Any]:
    """Return a request that an operation can carry out once, and no second time."""
    things: Things = await furnished(h)
    if operation.id == "cancel_run":
        things["runs"] = await h.run(things["agents"], "be silent")
    return things.request(operation)


async def count(h: House) -> list[int]:
    """Return how many there are of whatever can be made."""
    lists = ("/agents", "/runs?limit=500", "/triggers", "/gards", "/hooks", "/api_keys")
    return [len(await h.get(path)) for path in lists]


def test_whatever_makes_something_takes_a_key() -> None:
    """Every POST does, but for those of others (hooks) and those that can be repeated anyway."""
    posts = {one.id for one in OPERATIONS if one.methods == ("POST",)}
    assert posts - {one.id for one in TAKING} == {
        "receive_hook", "record_first_run", "release_session", "restore_session",
    }  # fmt: skip


@pytest.mark.parametrize("operation", GOOD, ids=lambda operation: operation.id)
async def test_the_same_request_has_the_same_answer(operation: Operation) -> None:
    """Once, twice, and at the same moment; and nothing more is made."""
    async with house() as h:
        path, body = await prepared(h, operation)
        first = await h.ask("POST", path, body, headers=KEY)
        assert first.status_code in (201, 202), first.text
        await h.settle()
        made = await count(h)
        for _ in range(2):
            again = await h.ask("POST", path, body, headers=KEY)
            assert (again.status_code, again.json()) == (first.status_code, first.json())
        await h.settle()
        assert await count(h) == made


@pytest.mark.parametrize(
    "operation", [one for one in GOOD if one.id in BODIES], ids=lambda operation: operation.id
)
async def test_a_key_belongs_to_one_request(operation: Operation) -> None:
    """422 for another body; another key, tenant or path is another request."""
    async with house() as h:
        path, body = await prepared(h, operation)
        await h.ask("POST", path, body, headers=KEY)
        await h.settle()
        field = next(iter(set(body) & {"name", "content", "message", "answer", "reason", "scope"}))
        other = {**body, field: "run" if field == "scope" else "something else"}
        answer = await h.ask("POST", path, other, headers=KEY)
        assert answer.status_code == 422, answer.text
        assert "used with another" in answer.json()["error"]


async def test_keys_of_tenants_and_paths_are_their_own() -> None:
    """What one tenant did is nothing that another one repeats."""
    async with house() as h:
        mine, theirs = [
            await h.make("/gards", {"name": tenant}, tenant=tenant, headers=KEY)
            for tenant in ("acme", "zeta")
        ]
        assert mine["claim_token"] != theirs["claim_token"]
        key = await h.make("/api_keys", {"scope": "read"}, headers=KEY)
        rotated = await h.make(f"/api_keys/{key['id']}/rotate", None, headers=KEY)
        assert rotated["key"] != key["key"]


async def test_of_two_at_the_same_moment_one_is_carried_out() -> None:
    """The other one waits for its answer."""
    async with house() as h:
        answers = await asyncio.gather(
            *(h.ask("POST", "/gards", {"name": "g"}, headers=KEY) for _ in range(5))
        )
        assert len({answer.text for answer in answers}) == 1
        assert len(await h.get("/gards")) == 1


async def test_what_was_refused_is_not_remembered() -> None:
    """The key may be used for what is meant."""
    async with house() as h:
        await h.make("/agents", BOT)
        answer = await h.ask("POST", "/agents", BOT, headers=KEY)
        assert answer.status_code == 422
        made = await h.make("/agents", {**BOT, "name": "other"}, headers=KEY)
        assert made["name"] == "other"


async def test_an_answer_is_kept_for_a_day_and_then_forgotten() -> None:
    """And what is forgotten takes no room."""
    async with house() as h:
        first = await h.make("/gards", {"name": "g"}, headers=KEY)
        h.clock.advance(DAY_MS - 10)
        assert await h.make("/gards", {"name": "g"}, headers=KEY) == first
        for number in range(5):
            h.clock.advance(DAY_MS)
            made = await h.make("/gards", {"name": f"g{number}"}, headers=KEY)
            assert made["id"] != first["id"]
            kept = await h.catalog.list("acme", Answered)
            assert len(kept) <= 1


async def test_secrets_in_answers_are_sealed() -> None:
    """Whoever has the catalog has no key."""
    async with house() as h:
        made = await h.make("/api_keys", {"scope": "admin"}, headers=KEY)
        (kept,) = await h.catalog.list("acme", Answered)
        assert kept.answer is not None
        assert made["key"] not in str(kept)


async def test_a_request_whose_node_died_is_carried_out_by_its_repetition() -> None:
    """Not at once: it may still be at it."""
    async with house() as h:
        create = h.catalog.create

        async def die(tenant: str, entry: Any) -> Any:
            if entry.kind == "gard":
                raise Unavailable("the node is gone")
            return await create(tenant, entry)

        h.catalog.create = die  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="503"):
            await h.ask("POST", "/gards", {"name": "g"}, headers=KEY)
        h.catalog.create = create  # type: ignore[method-assign]
        answer = await h.ask("POST", "/gards", {"name": "g"}, headers=KEY)
        assert (answer.status_code, answer.headers["Retry-After"]) == (409, "1")
        h.clock.advance(repeats.CLAIM_MS)
        made = await h.make("/gards", {"name": "g"}, headers=KEY)
        assert await h.make("/gards", {"name": "g"}, headers=KEY) == made
        assert len(await h.get("/gards")) == 1


async def test_a_message_that_comes_again_does_not_answer_the_question_of_its_own_run() -> None:
    """It is the run; and an answer that comes again is no second message."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        path, ask = f"/agents/{agent}/messages", {
            "content": "ask", "conversation_key": "c",
        }  # fmt: skip
        first = await h.make(path, ask, headers=KEY)
        await h.settle()
        assert await h.make(path, ask, headers=KEY) == first
        await h.settle()
        assert (await h.get(f"/runs/{first['run_id']}"))["status"] == "waiting"

        answer = {"content": "blue", "conversation_key": "c"}
        replied = await h.make(path, answer, headers={"Idempotency-Key": "k-2"})
        await h.settle()
        assert replied == first
        for _ in range(2):
            assert await h.make(path, answer, headers={"Idempotency-Key": "k-2"}) == first
        await h.settle()
        assert len(await h.get("/runs")) == 1


@pytest.mark.parametrize("key", ["", " ", "x" * 513])
async def test_a_key_that_is_none_is_named(key: str) -> None:
    """422, and the header's name."""
    async with house() as h:
        answer = await h.ask("POST", "/gards", {}, headers={"Idempotency-Key": key})
        assert answer.status_code == 422
        assert list(answer.json()["error"]) == ["Idempotency-Key"]
