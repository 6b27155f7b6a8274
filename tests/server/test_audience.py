"""Who follows an agent: each is told what happens from when he came, and it is read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from perdure.server.audience import Audiences
from tests.server.house import BOT, House, echo, house

RUN = ["llm_response", "completed"]


class Follower:
    """Notes what it is told."""

    def __init__(self, h: House, audiences: Audiences, agent: int) -> None:
        self.told: list[tuple[str, Any]] = []
        desk = h.service.desk("acme")
        self.leave: Callable[[], None] = audiences.join(desk, agent, self._tell)

    def _tell(self, event: str, payload: msgspec.Raw) -> None:
        self.told.append((event, msgspec.json.decode(payload)))

    def runs(self) -> list[int]:
        """Return the runs that it was told the ends of."""
        return [payload["run_id"] for event, payload in self.told if event == "completed"]


async def test_every_follower_is_told_what_happens_while_he_follows() -> None:
    async with house() as h:
        h.worker(echo)
        audiences = Audiences()
        agent = (await h.make("/agents", BOT))["id"]
        before = await h.run(agent)
        h.clock.advance(1_000)
        first = Follower(h, audiences, agent)
        one = await h.run(agent)
        h.clock.advance(1_000)
        second = Follower(h, audiences, agent)
        two = await h.run(agent, conversation_key="c")
        first.leave()
        three = await h.run(agent, conversation_key="c")
        second.leave()
        await h.run(agent)
        assert before not in first.runs()
        assert (first.runs(), second.runs()) == ([one, two], [two, three])
        assert second.told[: len(first.told) // 2] == first.told[len(first.told) // 2 :]


async def test_news_are_read_once_for_all_followers() -> None:
    """As often for fifty as for one."""

    async def reads(followers: int) -> int:
        async with house() as h:
            h.worker(echo)
            agent = (await h.make("/agents", BOT))["id"]
            count, read = 0, h.service.store.read

            async def counted(*arguments: Any) -> Any:
                nonlocal count
                count += 1
                return await read(*arguments)

            audiences = Audiences()
            following = [Follower(h, audiences, agent) for _ in range(followers)]
            h.service.store.read = counted  # type: ignore[method-assign]
            run = await h.run(agent)
            assert [one.runs() for one in following] == [[run]] * followers
            return count

    assert await reads(50) == await reads(1) > 0
