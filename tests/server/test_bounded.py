"""What is shown costs what it shows: rows know what their runs and sessions come to."""

from __future__ import annotations

from collections import Counter
from typing import Any

from perdure.adapters.stores.memory import MemoryStore
from perdure.core.codec import Record
from perdure.core.ids import SessionId
from perdure.core.messages import Usage
from perdure.core.runs import RunRow
from perdure.core.state import ModelUse
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.server.house import BOT, House, calls, echo, house, says

EVENTS_OF_A_RUN = 5
"""Its message, its start, what the model was asked, its reply, and the end."""


class Reads:
    """Counts the records that are read from a house's store."""

    def __init__(self, h: House, monkeypatch: Any) -> None:
        self.count = 0
        read = MemoryStore.read

        async def counted(
            store: MemoryStore, session: SessionId, after: int, limit: int
        ) -> list[Record]:
            found = await read(store, session, after, limit)
            self.count += len(found)
            return found

        monkeypatch.setattr(MemoryStore, "read", counted)

    async def of(self, h: House, path: str, **query: Any) -> int:
        """Return how many records it takes to answer."""
        before = self.count
        assert (await h.ask("GET", path, **query)).status_code == 200
        return self.count - before


async def test_nothing_is_read_twice_and_no_log_for_a_number(monkeypatch: Any) -> None:
    """Of usage and lists of sessions; a run that has ended is read once."""
    async with house() as h:
        h.worker(echo)
        agent = (await h.make("/agents", BOT))["id"]
        for number in range(20):
            run = await h.run(agent, f"hi {number}", conversation_key="long")
        reads = Reads(h, monkeypatch)
        assert await reads.of(h, "/usage") == 0
        assert await reads.of(h, f"/agents/{agent}/usage") == 0
        assert await reads.of(h, f"/agents/{agent}/conversations") == 1
        assert await reads.of(h, f"/runs/{run}") == EVENTS_OF_A_RUN
        assert await reads.of(h, f"/runs/{run}") == 0
        assert await reads.of(h, "/sessions") == 1
        await reads.of(h, "/runs")
        assert await reads.of(h, "/runs") == 0
        assert await reads.of(h, f"/runs/{run}/events") > 0


def folding(task: LlmTask | ToolTask) -> Result | None:
    """Play a model that is spent quickly, so that its history is folded; or waits for ever."""
    if isinstance(task, ToolTask):
        return says(task, "done")
    if str(task.messages[-1].content) == "be silent":  # type: ignore[union-attr,index]
        return None
    if task.purpose == "compact":
        return says(task, "a summary")
    if str(task.messages[-1].content) == "wait":  # type: ignore[union-attr,index]
        return calls(task, "wait", seconds=5)
    usage = {"input_tokens": 500, "output_tokens": 2}
    return Result(
        task_id=task.task_id, status="ok", content="ok", finish_reason="stop", usage=usage
    )


async def test_what_rows_know_is_what_the_log_tells() -> None:
    """In every state of a session, also of one whose history was folded."""
    async with house() as h:
        h.worker(folding)
        config = {"context_policy": {"compact_at": 100, "keep": 2}}
        agent = (await h.make("/agents", {**BOT, "model_config": config}))["id"]
        counts = []
        for content in ("one", "two", "wait", "be silent", "the time is over"):
            if content == "the time is over":
                await h.pass_time(6)
            else:
                await h.run(agent, content, conversation_key="k")
            (listed,) = await h.get("/sessions")
            whole = await h.get(f"/sessions/{listed['id']}")
            shown = ("message_count", "summary", "first_message", "status", "run")
            assert [listed[name] for name in shown] == [whole[name] for name in shown]
            assert listed["message_count"] == len(whole["messages"])
            counts.append(listed["message_count"])
        assert (listed["first_message"], listed["summary"]) == ("one", "a summary")
        assert counts == [2, 4, 6, 6, 9]


async def test_usage_is_that_of_all_runs_whatever_they_do() -> None:
    """One that goes on too, one that never began, and those of rows that know nothing yet."""
    async with house() as h:
        h.worker(folding)
        agent = (await h.make("/agents", BOT))["id"]
        for content in ("one", "wait"):
            await h.run(agent, content, conversation_key="k")
        silent = await h.run(agent, "be silent")
        queued = await h.run(agent, "two", conversation_key="k")
        await h.make(f"/runs/{queued}/cancel", {})
        usage = await h.get("/usage")
        assert (usage["runs"], usage["input_tokens"], usage["models"][0]["calls"]) == (4, 500, 2)
        desk = h.service.desk("acme")
        run = await desk.row(silent)
        used: Counter[str] = Counter()
        for row in await desk.rows():
            old = RunRow(**{**{n: getattr(row, n) for n in row.__struct_fields__}, "use": None})
            assert await desk.used(old) == await desk.used(row)
            used.update({model: use.calls for model, use in (await desk.used(row)).items()})
        assert used == {usage["models"][0]["model"]: 2}
        own = (ModelUse("gpt-5", None, 1, Usage(7)), ModelUse("gpt-5", "00", 1, Usage(1)))
        row = RunRow(id="r", session=run.session, status="completed", created_at=0, started_seq=2,
                     use=own)  # fmt: skip
        assert {model: use.calls for model, use in (await desk.used(row)).items()} == {"gpt-5": 2}
