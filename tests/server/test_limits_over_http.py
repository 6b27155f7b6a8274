"""What one tenant may take, as its clients see it; and what the other one notices: nothing."""

from __future__ import annotations

from tests.server.house import BOT, echo, furnished, house


async def test_too_many_requests() -> None:
    """429 with a time after which it is let in again; hooks count as well."""
    async with house(requests_per_second=2, requests_at_once=12) as h:
        things = await furnished(h)
        statuses = [(await h.ask("GET", "/agents")).status_code for _ in range(20)]
        assert statuses.count(429) >= 8
        answer = await h.ask("GET", "/agents")
        assert "try again in 1 s" in answer.json()["error"]
        assert answer.headers["Retry-After"] == "1"
        hook = await h.ask("POST", f"/hooks/{things['token']}", {}, scope=None)
        assert hook.status_code == 429
        assert (await h.ask("GET", "/agents", tenant="zeta")).status_code == 200
        assert (await h.ask("GET", "/health", scope=None)).status_code == 200
        h.clock.advance(1_000 * int(answer.headers["Retry-After"]))
        assert (await h.ask("GET", "/agents")).status_code == 200


async def test_a_stranger_takes_nothing_from_a_tenant() -> None:
    """Who has no key of it is not counted as it."""
    async with house(requests_at_once=5, requests_per_second=1) as h:
        for _ in range(20):
            assert (await h.ask("GET", "/agents", scope=None)).status_code == 401
            assert (await h.ask("GET", "/agents", scope="worker")).status_code == 401
        assert (await h.ask("GET", "/agents")).status_code == 200


async def test_too_many_runs() -> None:
    """429 when as many have not ended as may be; there is room again when some have."""
    async with house(parked_runs_max=3) as h:
        agent = (await h.make("/agents", BOT))["id"]
        path = f"/agents/{agent}/messages"
        first = await h.make(path, {"content": "hi"})
        for _ in range(2):
            await h.make(path, {"content": "hi"})
        for _ in range(3):
            answer = await h.ask("POST", path, {"content": "hi"})
            assert answer.status_code == 429
            assert "cancel some" in answer.json()["error"]
            assert answer.headers["Retry-After"] == "10"
        other = (await h.make("/agents", BOT, tenant="zeta"))["id"]
        await h.run(other, tenant="zeta")
        await h.make(f"/runs/{first['run_id']}/cancel", {})
        await h.settle()
        h.clock.advance(10_000)
        await h.make(path, {"content": "hi"})
        assert (await h.ask("POST", path, {"content": "hi"})).status_code == 429
        assert len(await h.get("/runs")) == 4


async def test_runs_that_have_ended_take_no_room() -> None:
    """However many there are; and what was parked may be answered at the limit."""
    async with house(parked_runs_max=2) as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        for _ in range(20):
            await h.run(agent, "hi")
        asking = await h.run(agent, "ask", conversation_key="c")
        await h.run(agent, "be silent")
        assert (
            await h.ask("POST", f"/agents/{agent}/messages", {"content": "x"})
        ).status_code == 429
        assert await h.run(agent, "blue", conversation_key="c") == asking
        assert (await h.get(f"/runs/{asking}"))["status"] == "completed"


async def test_the_size_of_a_body_is_the_tenants() -> None:
    """Smaller or larger than what is usual, to the byte."""
    for most in (1_000, 3 * 1024 * 1024):
        async with house(body_bytes_max=most) as h:
            for size, status in ((most, 201), (most + 1, 413)):
                body = b'{"name": "a", "system_prompt": "b", "model_config": {"x": ""}}'
                body = body.replace(b'""', b'"%s"' % (b"x" * (size - len(body))))
                answer = await h.ask("POST", "/agents", content=body)
                assert (len(body), answer.status_code) == (size, status)


async def test_workers_and_clients_have_limits_of_their_own() -> None:
    """A tenant's clients take no place of its workers, and the other way round."""
    async with house(worker_sockets_max=1, client_sockets_max=2) as h:
        workers, clients = h.service.sockets["worker"], h.service.sockets["agent"]
        assert [workers.open("acme") for _ in range(2)] == [True, False]
        assert [clients.open("acme") for _ in range(3)] == [True, True, False]
