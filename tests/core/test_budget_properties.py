"""What holds of every purse, whatever comes, in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.api.cost import Prices, price
from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import ContextPolicy
from perdure.core.budget import Budget, Purse
from perdure.core.codec import decode_event, encode_event
from perdure.core.evolve import evolve
from perdure.core.messages import ModelReply, Usage
from perdure.core.state import EMPTY, State, decode_snapshot, encode_snapshot
from perdure.testing.account import Account
from tests.core.rules import Rules, ask
from tests.core.story import Story, agent, call

PRICES = Prices({"m": price("3", "15", "0.3")}, "2026-11-20")
AMOUNTS = st.sampled_from([None, 0, 1, 1_500, 4_000, 20_000])
BUDGETS = st.builds(
    Budget,
    tokens_max=AMOUNTS,
    cost_micros_max=AMOUNTS,
    wall_ms_max=st.sampled_from([None, 10_000]),
    calls_max=st.dictionaries(st.sampled_from(["look", "save", "pay"]), st.integers(0, 3)),
    on_breach=st.sampled_from(["ask", "ask", "ask", "fail"]),
)
TOOL = st.sampled_from(
    [call("look"), call("save"), call("pay"), call("mail"), call("ask_human", question="?")]
)
USAGE = st.tuples(st.integers(0, 100), st.integers(0, 100))
"""What a reply took, in hundredths of what was reserved for what goes in and what comes out."""
STEP = st.one_of(
    st.tuples(st.just("message"), st.sampled_from(["queue", "steer", "interrupt"])),
    st.tuples(st.just("reply"), st.tuples(st.lists(TOOL, max_size=3), USAGE)),
    st.tuples(st.just("reply"), st.tuples(st.lists(TOOL, max_size=3), USAGE)),
    st.tuples(
        st.just("fail"),
        st.sampled_from(["rate_limited", "timeout", "not_authorised", "upstream_unavailable"]),
    ),
    st.tuples(st.just("resend"), st.none()),
    st.tuples(
        st.just("raise"),
        st.tuples(st.integers(0, 5_000), st.integers(0, 5_000), st.integers(0, 2)),
    ),
    st.tuples(st.sampled_from(["deny", "cancel", "fire", "retry"]), st.none()),
    st.tuples(st.sampled_from(["result", "lose", "decide"]), st.integers(0, 5)),
    st.tuples(st.just("result"), st.integers(0, 5)),
    st.tuples(st.just("time"), st.integers(0, 6_000)),
)
STEPS = st.lists(STEP, max_size=60)


def told(budget: Budget) -> Story:
    """Return a story of an agent that compacts early, has a budget, and asks before it pays."""
    definition = agent(
        model="m",
        max_tokens=100,
        budget=budget,
        context=ContextPolicy("compact", compact_at_tokens=500, keep_messages=2),
    )
    return Story(definition, Rules(pay=ask()), prices=PRICES)


def reply(story: Story, tools: list[Any], used: tuple[int, int]) -> None:
    """Let the model that is asked reply, and report no more than was reserved for it."""
    asked = [one for one in story.state.calls.values() if one.kind in ("model", "compaction")]
    if not asked:
        return
    run = story.state.run
    purse = None if run is None else run.purse
    reserved = None if purse is None else purse.reserved.get(asked[0].id)
    most = 900 if reserved is None else reserved.tokens - 100
    usage = Usage(most * used[0] // 100, used[1])
    calls = tuple(
        type(one)(f"{one.name}-{n}", one.name, one.arguments) for n, one in enumerate(tools)
    )
    answer = ModelReply("text", calls, usage=usage)
    story.tell(c.ReportReply(call=asked[0].id, reply=answer))


def perform(story: Story, step: tuple[str, Any]) -> None:
    """Do one random thing, aimed at an open call if there is one."""
    verb, value = step
    calls = list(story.state.calls.values())
    target = calls[value % len(calls)] if calls and isinstance(value, int) else None
    call_id = calls[0].id if calls else "9.9.m9"
    match verb:
        case "message":
            story.message(mode=value)
        case "reply":
            reply(story, *value)
        case "fail":
            named = "transient" if value == "timeout" else "external_dependency"
            error: Any = {"error_class": named, "code": value, "message": value}
            story.tell(c.ReportModelError(call=call_id, **error))
        case "resend":
            story.tell(c.ResendModelCall(call=call_id))
        case "raise":
            tokens, micros, more = value
            story.more(tokens=tokens)
            story.more(cost_micros=micros, calls={"look": more})
            story.more(calls={"look": more})
        case "deny":
            story.no_more()
        case "cancel":
            story.cancel()
        case "retry":
            run = story.state.run
            if run is not None and run.status in ("failed", "cancelled"):
                story.message(retry_of=run.id)
        case "fire":
            for one in calls:
                if one.due_at is not None:
                    story.now = max(story.now, one.due_at)
                    story.tell(c.FireTimer(call=one.id))
        case "decide" if target is not None:
            story.decide("approve" if value % 2 else "deny", target.id)
        case "result" if target is not None and target.kind == "tool":
            if target.effect == "once" and target.status == "intended":
                story.tell(c.ReportToolBegin(call=target.id, attempt=target.attempt, worker="w"))
            done: Any = {"call": target.id, "attempt": target.attempt, "ok": True}
            story.tell(c.ReportToolResult(content="x" * value, **done))
        case "result" if target is not None and target.kind == "question":
            story.answer("yes", target.id)
        case "lose" if target is not None:
            story.tell(c.ReportToolLost(call=target.id, attempt=target.attempt, reason="lost"))
        case "time":
            story.now += value


def purse_of(state: State) -> Purse | None:
    """Return the purse of the run that is in progress, or was last."""
    return None if state.run is None else state.run.purse


@settings(max_examples=400, deadline=None)
@given(BUDGETS, STEPS)
def test_no_more_is_spent_than_there_is_with_what_was_added(
    budget: Budget, steps: list[Any]
) -> None:
    """Where providers report no more than the worst case: the trace keeps the account of that."""
    story = told(budget)
    for step in steps:
        before, log = story.state, len(story.log)
        perform(story, step)
        if story.refused is not None and len(story.log) == log:
            assert story.state == before
    account: Account | None = None
    state = EMPTY
    for event in story.log:
        state = evolve(state, event)
        if isinstance(event, e.RunStarted):
            assert event.budget is not None
            account = Account(event.budget)
        elif account is not None:
            assert account.take(event) == ""
        purse = purse_of(state)
        if account is not None and purse is not None:
            assert account.differs(purse) == ""
            tokens, micros = purse.allotted.tokens_max, purse.allotted.cost_micros_max
            assert tokens is None or purse.tokens <= tokens
            assert micros is None or purse.cost_micros <= micros
            for tool, most in purse.allotted.calls_max.items():
                assert purse.calls.get(tool, 0) <= most
            assert state.status != "idle" or not purse.reserved


@settings(max_examples=200, deadline=None)
@given(BUDGETS, STEPS)
def test_a_purse_is_the_same_wherever_a_run_was_read_anew(budget: Budget, steps: list[Any]) -> None:
    """From bytes, from a snapshot at every event, or in one go."""
    story = told(budget)
    for step in steps:
        perform(story, step)
    whole = kept = EMPTY
    for event in story.log:
        again = decode_event(encode_event(event))
        whole = evolve(whole, again)
        snapshot = decode_snapshot(encode_snapshot(kept))
        assert snapshot is not None
        kept = evolve(snapshot, again)
    assert whole == kept == story.state


@settings(max_examples=200, deadline=None)
@given(BUDGETS, STEPS)
def test_a_run_that_is_short_of_something_always_asks_for_it(
    budget: Budget, steps: list[Any]
) -> None:
    """And goes on when there is enough, at the step where it stopped."""
    story = told(budget)
    for step in steps:
        perform(story, step)
    waits = [one for one in story.state.calls.values() if one.status == "exceeded"]
    if not waits or purse_of(story.state) is None:
        return
    purse = purse_of(story.state)
    assert purse is not None
    more: dict[str, Any] = {"calls": dict.fromkeys(purse.allotted.calls_max, 100)}
    if purse.allotted.tokens_max is not None:
        more["tokens"] = 10**9
    if purse.allotted.cost_micros_max is not None:
        more["cost_micros"] = 10**9
    if purse.allotted.wall_ms_max is not None:
        more["wall_ms"] = 10**6
    step = waits[0].step
    assert story.more(**more)[0] == "budget_raised"
    assert all(one.status != "exceeded" for one in story.state.calls.values())
    assert story.state.run is not None
    assert story.state.run.step == step
