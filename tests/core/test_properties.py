"""What holds whatever comes, in any order: random commands against the core."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core import commands as c
from perdure.core.agent import ContextPolicy
from perdure.core.codec import decode_event, genesis, seal
from perdure.core.evolve import evolve
from perdure.core.export import export_lines, verify_export
from perdure.core.history import malformed
from perdure.core.messages import ModelReply
from perdure.core.runs import run_row, waiting_for
from perdure.core.session import owed, wake_at
from perdure.core.state import EMPTY, decode_snapshot, encode_snapshot
from tests.core.story import SESSION, Story, agent, call, compacting

TOOL = st.sampled_from(
    [
        call("look"),
        call("save"),
        call("pay"),
        call("mail"),
        call("risky"),
        call("nothing"),
        call("wait", seconds=3),
        call("ask_human", question="Sure?"),
    ]
)
STEP = st.one_of(
    st.tuples(st.just("message"), st.sampled_from(["queue", "steer", "interrupt"])),
    st.tuples(st.just("reply"), st.lists(TOOL, max_size=4)),
    st.tuples(st.just("reply"), st.just([])),
    st.tuples(st.just("model_error"), st.sampled_from(["rate_limited", "unexpected_failure"])),
    st.tuples(
        st.sampled_from(["begin", "result", "lose", "probe", "resolve", "answer", "fire"]),
        st.integers(0, 5),
    ),
    st.tuples(st.just("result"), st.integers(0, 5)),
    st.tuples(st.just("result"), st.integers(0, 5)),
    st.tuples(st.just("cancel"), st.sampled_from([None, "r2", "nonsense"])),
    st.tuples(st.just("time"), st.integers(0, 20_000)),
)
AGENTS = st.sampled_from(
    [
        agent(),
        agent(context=ContextPolicy("window", window_messages=3)),
        compacting(5, 2),
    ]
)


def perform(story: Story, step: tuple[str, Any]) -> None:
    """Do one random thing, aimed at an open call if there is one."""
    verb, value = step
    calls = list(story.state.calls.values())
    target = calls[value % len(calls)] if calls and isinstance(value, int) else None
    call_id, attempt = (target.id, target.attempt) if target else ("9.9.t9", 1)
    run = story.state.run.id if story.state.run else "none"
    if verb == "message":
        story.message(mode=value)
    elif verb == "reply":
        calls_of_model = [one for one in calls if one.kind in ("model", "compaction")]
        model_call = calls_of_model[0].id if calls_of_model else "9.9.m9"
        renamed = tuple(
            type(one)(f"{one.name}-{n}", one.name, one.arguments) for n, one in enumerate(value)
        )
        story.tell(c.ReportReply(call=model_call, reply=ModelReply("text", renamed)))
    elif verb == "model_error":
        story.tell(
            c.ReportModelError(
                call=calls[0].id if calls else "none",
                error_class="external_dependency",
                code=value,
                message=value,
            )
        )
    elif verb == "begin":
        story.tell(c.ReportToolBegin(call=call_id, attempt=attempt, worker="w"))
    elif verb == "result":
        if target and target.effect == "once" and target.status == "intended":
            story.tell(c.ReportToolBegin(call=call_id, attempt=attempt, worker="w"))
        story.tell(c.ReportToolResult(call=call_id, attempt=attempt, ok=True, content=value))
    elif verb == "lose":
        story.tell(c.ReportToolLost(call=call_id, attempt=attempt, reason="lost"))
    elif verb == "probe":
        verdict: Any = ["happened", "did_not_happen", "undecided"][value % 3]
        story.tell(c.ReportProbe(call=call_id, attempt=attempt, verdict=verdict))
    elif verb == "resolve":
        resolution: Any = ["happened", "did_not_happen", "tell_model"][value % 3]
        story.tell(
            c.ResolveCall(id=f"x{len(story.log)}", run=run, call=call_id, resolution=resolution)
        )
    elif verb == "answer":
        story.answer("yes", call=call_id)
    elif verb == "fire":
        story.tell(c.FireTimer(call=call_id))
    elif verb == "cancel":
        story.cancel(value)
    else:
        story.now += value


@settings(max_examples=300, deadline=None)
@given(AGENTS, st.lists(STEP, max_size=60))
def test_any_order_of_commands_leaves_a_lawful_log(definition: Any, steps: list[Any]) -> None:
    story = Story(definition)
    for step in steps:
        before, log = story.state, len(story.log)
        perform(story, step)
        if story.refused is not None:
            assert (story.state, len(story.log)) == (before, log)
    folded = EMPTY
    for event in story.log:
        folded = evolve(folded, event)
    assert folded == story.state
    assert decode_snapshot(encode_snapshot(folded)) == folded
    records = seal(genesis(SESSION), 0, story.log)
    assert verify_export(export_lines(SESSION, records)).state == folded
    assert [decode_event(record.body) for record in records] == story.log


@settings(max_examples=300, deadline=None)
@given(AGENTS, st.lists(STEP, max_size=60))
def test_whatever_a_model_is_shown_is_well_formed_and_rebuilt_from_the_log(
    definition: Any, steps: list[Any]
) -> None:
    story = Story(definition)
    for step in steps:
        perform(story, step)
    history = story.history()
    for seq, event in enumerate(story.log, start=1):
        if type(event).__name__ in ("ModelCallIntended", "CompactionIntended"):
            assert event.upto < seq
            shown = history.messages(event.first, event.upto)
            assert malformed(shown) == []
            assert shown
    if not story.state.calls:
        story.messages()


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_a_session_never_gets_stuck(steps: list[Any]) -> None:
    """A run in progress always owes something to a worker, waits for a time, or asks a person."""
    story = Story()
    for step in steps:
        perform(story, step)
    if story.state.status == "idle":
        assert owed(story.state) == ()
        assert story.waiting == []
        return
    assert owed(story.state)
    asked = {wait["call"] for wait in waiting_for(story.state)}
    for one in owed(story.state):
        at_work = one.status in ("intended", "begun", "unknown")
        assert at_work or one.id in asked
    row = run_row(SESSION, story.state)
    assert row is not None
    assert row.status in ("running", "waiting")
    if any(one.due_at is not None for one in owed(story.state)):
        assert wake_at(story.state) is not None
