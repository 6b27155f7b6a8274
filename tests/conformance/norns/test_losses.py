"""What is lost and what is not when a worker, a node or the line between them dies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.conformance.norns.house import Client, House, call, script, until
from tests.conformance.norns.tap import Tap


async def charging(house: House, client: Client, **named: str) -> int:
    """Send a message whose run charges once its gate is open; return when it is about to."""
    gate = str(house.folder / "gate")
    run = await client.send(script([call("charge_at", amount=5, gate=gate)], "so: {last}"), **named)
    await until(lambda: house.did("charging 5"))
    return run


def open_gate(house: House) -> None:
    """Let what waits at the gate go on."""
    (house.folder / "gate").touch()


def tasks(tap: Tap) -> list[tuple[str, str]]:
    """Return the task and the idempotency key of each tool call that was sent."""
    return [(one["task_id"], one["idempotency_key"]) for one in tap.said("node", "tool_task")]


async def test_a_call_whose_worker_was_killed_before_it_acted_is_handed_on(house: House) -> None:
    """As the same task under the same key, to whoever has the tool."""
    tap = await house.tap()
    first = await house.worker(via=tap)
    client = await house.client()
    run = await charging(house, client)
    await first.end(signal.SIGKILL)
    await house.worker(via=tap, worker_id="w2")
    open_gate(house)
    assert (await client.ended(run))["output"] == "so: charged 5"
    before, after = tasks(tap)
    assert before == after
    assert house.did("charged 5") == 1
    assert (await client.events(run)).count("tool_call") == 1


async def test_a_call_whose_worker_was_killed_after_it_acted_is_not_repeated(
    house: House,
) -> None:
    """The SDK has it on disk, under its key: the worker that comes back answers from there."""
    tap = await house.tap()
    tap.change = lambda side, frame: None if _is_tool_result(side, frame) else frame
    first = await house.worker(via=tap)
    client = await house.client()
    run = await client.send(script([call("charge", amount=5)], "so: {last}"))
    await until(lambda: any(_is_tool_result(*heard) for heard in tap.heard))
    await first.end(signal.SIGKILL)
    tap.change = lambda side, frame: frame
    await house.worker(via=tap)
    assert (await client.ended(run))["output"] == "so: charged 5"
    assert tap.said("worker", "tool_result")[-2]["duplicate"] is True
    assert house.did("charged 5") == 1
    assert (await client.events(run))[3:6] == ["tool_call", "tool_call_lost", "tool_duplicate"]
    assert (await house.get(f"/runs/{run}/summary"))["counters"]["duplicates_skipped"] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_a_run_goes_on_where_its_node_left_it(mortal: House, number: signal.Signals) -> None:
    """The worker comes back by itself; what was completed is not repeated."""
    tap = await mortal.tap()
    await mortal.worker(via=tap)
    client = await mortal.client()
    steps: list[Any] = [[call("charge", amount=1)], [call("charge", amount=2)]]
    gate = str(mortal.folder / "gate")
    run = await client.send(script(*steps, [call("charge_at", amount=3, gate=gate)], "{last}"))
    await until(lambda: mortal.did("charging 3"))
    await mortal.kill_node(number)
    await mortal.node()
    await until(lambda: mortal.did("charging 3") == 2)
    open_gate(mortal)
    assert (await client.ended(run))["output"] == "charged 3"
    assert [mortal.did(f"charged {amount}") for amount in (1, 2)] == [1, 1]
    assert {task["run_id"] for task in tap.said("node", "tool_task")} == {run}
    models = [line for line in mortal.journal if line.startswith("model")]
    assert len(models) == len(set(models)) == 4


# Of a run of two charges: a task and a result of each of three model calls and two tool calls.
FRAMES = range(1, 11)


def fall_silent(tap: Tap, at: int) -> Callable[[], bool]:
    """Pass nothing on from this task or result on; returns what says whether that is now."""
    passed = 0

    def pass_on(side: str, frame: list[Any]) -> list[Any] | None:
        nonlocal passed
        passed += frame[3] in ("llm_task", "tool_task", "tool_result")
        return frame if passed < at else None

    tap.change = pass_on
    return lambda: passed >= at


@pytest.mark.parametrize(
    ("who", "frames"),
    [("node", (1, 4, 7)), ("worker", FRAMES), ("node and worker", FRAMES)],
    ids=["node", "worker", "both"],
)
async def test_a_death_at_any_frame_loses_nothing(
    mortal: House, who: str, frames: Sequence[int]
) -> None:
    """From that frame on the line is silent. Two charges, each once, and the answer."""
    tap = await mortal.tap()
    worker = await mortal.worker(via=tap)
    client = await mortal.client()
    for frame in frames:
        silent = fall_silent(tap, frame)
        first, second = 2 * frame, 2 * frame + 1
        steps = [[call("charge", amount=first)], [call("charge", amount=second)]]
        run = await client.send(script(*steps, "done"))
        await until(silent)
        if "worker" in who:
            await worker.end()
        if "node" in who:
            await mortal.kill_node()
        tap.cut()
        tap.change = lambda side, frame: frame
        if "node" in who:
            await mortal.node()
        if "worker" in who:
            worker = await mortal.start_worker(via=tap)
        assert (await client.ended(run))["output"] == "done"
        assert [mortal.did(f"charged {amount}") for amount in (first, second)] == [1, 1]


async def test_a_timer_goes_on_while_its_node_is_dead(mortal: House) -> None:
    """It is set once, and due when it was going to be."""
    worker = await mortal.worker()
    client = await mortal.client()
    run = await client.send(script([call("wait", seconds=1)], "waited"))
    await until(lambda: _waits_for_time(client, run))
    await mortal.kill_node()
    await worker.end()
    await mortal.node()
    await mortal.worker()
    assert (await client.ended(run))["output"] == "waited"
    assert (await client.events(run)).count("waiting_for_timer") == 1


async def test_a_worker_whose_line_breaks_comes_back(house: House) -> None:
    """And does again what it had in hand: the SDK drops that with its connection."""
    tap = await house.tap()
    worker = await house.worker(via=tap)
    client = await house.client()
    gate = str(house.folder / "gate")
    run = await client.send(script([call("charge_at", amount=5, gate=gate)], "so: {last}"))
    await until(lambda: house.did("charging 5"))
    tap.cut()
    await until(lambda: house.did("charging 5") == 2)
    assert (await client.events(run)).count("tool_call_lost") == 1
    open_gate(house)
    assert (await client.ended(run))["output"] == "so: charged 5"
    assert worker.process.returncode is None


async def test_a_worker_that_is_told_to_stop_finishes_what_it_has(house: House) -> None:
    """It says so before its last result; what comes meanwhile waits for its successor."""
    tap = await house.tap()
    first = await house.worker(via=tap)
    client = await house.client()
    run = await charging(house, client)
    first.process.send_signal(signal.SIGTERM)
    await until(lambda: tap.said("worker", "drain"))
    (shown,) = await until(lambda: house.get("/workers"))
    assert shown["draining"] is True
    other = await client.send("hi")
    open_gate(house)
    assert await first.line() == "stopped"
    await first.gone()
    assert [frame[3] for side, frame in tap.heard if side == "worker"][-3:] == [
        "drain",
        "tool_result",
        "phx_leave",
    ]
    assert ("node", 1000) in tap.closed_with
    assert house.did("charged 5") == 1
    assert (await house.get(f"/runs/{other}"))["waits"]
    await house.worker(worker_id="w2")
    assert (await client.ended(run))["output"] == "so: charged 5"
    assert (await client.ended(other))["output"] == "you said hi"


async def test_a_worker_that_gives_up_its_last_task_hands_it_on(house: House) -> None:
    """Its deadline for stopping is over before the tool is done."""
    tap = await house.tap()
    first = await house.worker(via=tap, shutdown_timeout=0.1)
    client = await house.client()
    run = await charging(house, client)
    first.process.send_signal(signal.SIGTERM)
    await until(lambda: tap.said("worker", "phx_leave"))
    await house.worker(via=tap, worker_id="w2")
    open_gate(house)
    assert (await client.ended(run))["output"] == "so: charged 5"
    before, after = tasks(tap)
    assert before == after


async def test_a_second_worker_of_the_same_id_takes_the_place_of_the_first(house: House) -> None:
    """And its work; the first is let go, and takes it back: nobody loses anything."""
    tap = await house.tap()
    await house.worker(via=tap)
    client = await house.client()
    run = await charging(house, client)
    await house.start_worker(via=tap)
    await until(lambda: len(tasks(tap)) > 1)
    open_gate(house)
    assert (await client.ended(run))["status"] == "completed"
    assert ("node", 1012) in tap.closed_with


def _is_tool_result(side: str, frame: list[Any]) -> bool:
    return side == "worker" and frame[3] == "tool_result" and "result" in frame[4]


async def _waits_for_time(client: Client, run: int) -> bool:
    return "waiting_for_timer" in await client.events(run)
