"""evolve: what the tables do not list is refused, and the state stays as it was."""

from __future__ import annotations

from itertools import product

import pytest

from perdure.core import events as e
from perdure.core.errors import IllegalTransition
from perdure.core.events import EVENT_TYPES
from perdure.core.evolve import evolve
from perdure.core.state import EMPTY, State
from perdure.core.transitions import CALL, SESSION
from tests.core.story import Story, call


def reached(status: str) -> State:
    """Return a state of each status, reached by a story."""
    story = Story()
    if status == "idle":
        return EMPTY
    story.message()
    if status == "acting":
        story.reply(call("look"))
    elif status == "delayed":
        story.fail("transient", "timeout")
    return story.state


@pytest.mark.parametrize("status", ["idle", "acting", "thinking", "delayed"])
def test_an_event_without_a_row_is_refused_by_name_and_changes_nothing(status: str) -> None:
    state = reached(status)
    assert state.status == status
    for name, kind in EVENT_TYPES.items():
        if name in SESSION[status]:
            continue
        required = {field: "?" for field in kind.__struct_fields__ if field != "at"}
        event = kind(at=1, **required)
        copy = State(**{name: getattr(state, name) for name in state.__struct_fields__})
        with pytest.raises(IllegalTransition, match=f"'{name}'.*'{status}'"):
            evolve(state, event)
        assert state == copy


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (e.ToolCallSucceeded(at=1, call="1.1.t9", content="x"), "'absent'"),
        (e.TimerFired(at=1, call="1.1.t0"), "'intended'"),
        (e.ToolCallUnknown(at=1, call="1.1.t0", attempt=1, reason="x"), "'intended'"),
        (e.RunCompleted(at=1, run="r1", answer=4), "still open: 1.1.t0"),
        (
            e.ModelCallIntended(at=1, call="1.2.m1", step=2, first=1, upto=4),
            "still open",
        ),
    ],
)
def test_a_call_moves_only_as_its_table_says(event: e.Event, message: str) -> None:
    with pytest.raises(IllegalTransition, match=message):
        evolve(reached("acting"), event)


def test_a_run_cannot_be_ended_by_another_runs_end() -> None:
    with pytest.raises(IllegalTransition, match="'r9'"):
        evolve(reached("thinking"), e.RunCancelled(at=1, run="r9", reason="x"))


def test_the_tables_name_only_events_and_statuses_that_exist() -> None:
    for table in (SESSION, CALL):
        named = {event for row in table.values() for event in row}
        assert named <= EVENT_TYPES.keys()
        targets = {status for row in table.values() for status in row.values()}
        assert targets <= table.keys() | {"done"}


def test_every_event_can_happen_somewhere() -> None:
    listed = {event for row in SESSION.values() for event in row}
    assert listed == EVENT_TYPES.keys()


def test_every_status_can_be_left_and_reached() -> None:
    for table, start in ((SESSION, "idle"), (CALL, "absent")):
        seen, border = {start}, [start]
        while border:
            border = [
                target
                for status, row in table.items()
                for target in row.values()
                if status in seen and target not in seen
            ]
            seen.update(border)
        assert table.keys() <= seen
    assert all(row for row, _ in product(SESSION.values(), [None]))
