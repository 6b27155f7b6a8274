"""Budgets: reserved before, settled after, and somebody is asked before more is spent."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.api.cost import Prices, price
from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.budget import Budget, Purse, check_budget, reserved_tokens, tightest, tokens_left
from perdure.core.errors import InvalidInput
from perdure.core.measure import MESSAGE_FRAME_TOKENS
from perdure.core.messages import ModelReply, Usage
from perdure.core.prices import cost_micros, micros_of, money, worst_micros
from perdure.core.runs import run_row
from perdure.core.state import decode_snapshot, encode_snapshot
from tests.core.rules import Rules, ask
from tests.core.story import SESSION, Story, agent, call, spending

PRICES = Prices({"m": price("3", "15", "0.3")}, "2026-11-20")
PLENTY = 1_000_000


def purse(story: Story) -> Purse:
    """Return the purse of the story's run."""
    assert story.state.run is not None
    assert story.state.run.purse is not None
    return story.state.run.purse


def waits(story: Story) -> list[dict[str, Any]]:
    """Return what the row of the story's run says that it waits for."""
    return list(run_row(SESSION, story.state).waiting_for)


def begun(prices: Prices = PRICES, **budget: Any) -> Story:
    """Return a story with a budget, whose model is asked."""
    story = Story(spending(**budget), prices=prices)
    story.message("hello")
    return story


def test_a_run_without_a_budget_has_no_purse_and_its_log_no_word_of_it() -> None:
    story = Story(prices=PRICES)
    story.message()
    story.reply(text="done")
    assert story.state.run is not None
    assert story.state.run.purse is None
    intended = next(one for one in story.log if isinstance(one, e.ModelCallIntended))
    replied = next(one for one in story.log if isinstance(one, e.ModelReplied))
    assert (intended.reserved, replied.cost_micros) == (None, None)


def test_the_worst_case_is_reserved_with_the_intent_and_what_was_used_is_settled() -> None:
    story = begun(tokens_max=PLENTY, cost_micros_max=PLENTY)
    intended = story.log[-1]
    assert isinstance(intended, e.ModelCallIntended)
    reserve = intended.reserved
    assert reserve is not None
    assert (reserve.model, reserve.priced) == ("m", "2026-11-20")
    assert reserve.tokens > 100
    assert reserve.cost_micros == pytest.approx((reserve.tokens - 100) * 3.75 + 100 * 15, abs=1)
    assert purse(story).reserved == {"1.1.m1": reserve}
    story.reply(text="done", tokens=40)
    assert purse(story) == Purse(
        allotted=Budget(tokens_max=PLENTY, cost_micros_max=PLENTY), tokens=41, cost_micros=135
    )


def test_after_a_reply_only_what_was_said_since_is_estimated() -> None:
    story = begun(tokens_max=PLENTY)
    first = purse(story).reserved["1.1.m1"].tokens
    story.reply(call("look"), tokens=3_000)
    story.result("look", "x" * 500)
    second = purse(story).reserved["1.2.m1"].tokens
    frames = 3 * MESSAGE_FRAME_TOKENS
    assert second == 3_000 + 1 + 500 + frames + 100
    assert first != second


def test_another_definition_is_estimated_anew_since_it_may_show_more() -> None:
    story = begun(tokens_max=PLENTY)
    story.reply(call("look"), tokens=10)
    story.agent = agent(
        model="m", max_tokens=100, instructions="é" * 5_000, budget=story.agent.spec.budget
    )
    story.result("look", "seen")
    assert purse(story).reserved["1.2.m1"].tokens > 10_000


def test_a_call_that_does_not_fit_parks_the_run_and_a_raise_goes_on_right_there() -> None:
    story = begun(tokens_max=10)
    assert story.kinds()[-1] == "budget_exceeded"
    [wait] = waits(story)
    assert (wait["what"], wait["short_of"], wait["left"]) == ("budget", "tokens", 10)
    row = run_row(SESSION, story.state)
    assert (row.status, row.purse) == ("waiting", purse(story))
    assert story.more(tokens=wait["needed"] - 11) == ["budget_raised", "budget_exceeded"]
    assert waits(story)[0]["call"] != wait["call"]
    assert story.more(tokens=1) == ["budget_raised", "model_call_intended"]
    assert tokens_left(purse(story)) == 0
    assert story.reply(text="done")[-1] == "run_completed"


def test_money_runs_out_too_and_time() -> None:
    assert waits(begun(cost_micros_max=5))[0]["short_of"] == "cost"
    story = begun(wall_ms_max=1_000)
    story.reply(call("look"))
    story.now += 5_000
    assert story.result("look")[-1] == "budget_exceeded"
    assert (waits(story)[0]["short_of"], waits(story)[0]["needed"]) == ("wall", 4_001)
    assert story.more(wall_ms=60_000)[-1] == "model_call_intended"
    assert purse(story).allotted.wall_ms_max == 65_000


def test_a_model_without_a_price_is_never_free() -> None:
    story = begun(Prices({}), cost_micros_max=PLENTY)
    assert (waits(story)[0]["short_of"], story.more()) == (
        "unpriced",
        ["budget_raised", "budget_exceeded"],
    )
    story.prices = PRICES
    assert story.more()[-1] == "model_call_intended"


def test_a_reply_of_unknown_length_cannot_be_reserved() -> None:
    story = Story(agent(model="m", budget=Budget(tokens_max=PLENTY)), prices=PRICES)
    story.message()
    assert waits(story)[0]["short_of"] == "unbounded"
    story.prices = Prices({"m": price("3", "15", output_tokens_max=500)})
    assert story.more()[-1] == "model_call_intended"


def test_a_run_may_fail_instead_of_asking() -> None:
    story = begun(tokens_max=10, on_breach="fail")
    assert story.kinds()[-1] == "run_failed"
    assert story.state.run is not None
    assert story.state.run.code == "budget_exceeded"
    assert "may take" in (story.state.run.message or "")
    story = begun(calls_max={"look": 1}, on_breach="fail")
    told = story.reply(call("save"), call("look", "a"), call("look", "b"))
    assert told[-4:] == [
        "tool_call_denied",
        "tool_call_cancelled",
        "tool_call_cancelled",
        "run_failed",
    ]


@pytest.mark.parametrize(
    ("error_class", "code", "message", "doubtful"),
    [
        ("external_dependency", "rate_limited", "HTTP 429", False),
        ("external_dependency", "upstream_unavailable", "m answered HTTP 529: busy", False),
        ("external_dependency", "upstream_unavailable", "m answered HTTP 502", True),
        ("validation", "status_400", "HTTP 400", False),
        ("validation", "not_authorised", "HTTP 401", False),
        ("validation", "reply_too_large", "more than 4 MB", True),
        ("transient", "timeout", "timed out", True),
        ("transient", "worker_disconnected", "gone", True),
        ("transient", "connection_lost", "reset", True),
        ("internal", "unexpected_failure", "?", True),
    ],
)
def test_a_refusal_is_released_and_what_may_be_billed_is_kept_in_doubt(
    error_class: Any, code: str, message: str, doubtful: bool
) -> None:
    story = begun(tokens_max=PLENTY, cost_micros_max=PLENTY)
    [reserve] = purse(story).reserved.values()
    story.tell(
        c.ReportModelError(call="1.1.m1", error_class=error_class, code=code, message=message)
    )
    after = purse(story)
    kept = (reserve.tokens, reserve.cost_micros) if doubtful else (0, 0)
    assert (after.tokens, after.cost_micros) == kept
    assert (after.doubtful_tokens, after.doubtful_micros) == kept
    assert after.reserved == {}


def test_what_a_cancelled_run_leaves_open_may_be_billed() -> None:
    story = begun(tokens_max=PLENTY)
    [reserve] = purse(story).reserved.values()
    story.cancel()
    assert (purse(story).doubtful_tokens, reserved_tokens(purse(story))) == (reserve.tokens, 0)


def test_a_model_that_does_not_say_what_it_used_took_the_worst_case() -> None:
    story = begun(tokens_max=PLENTY)
    [reserve] = purse(story).reserved.values()
    story.tell(c.ReportReply(call="1.1.m1", reply=ModelReply("done", usage=Usage())))
    assert (purse(story).tokens, purse(story).doubtful_tokens) == (reserve.tokens,) * 2


def test_a_model_that_is_asked_again_is_reserved_for_again() -> None:
    story = begun(tokens_max=PLENTY)
    [reserve] = purse(story).reserved.values()
    assert story.tell(c.ResendModelCall(call="1.1.m1")) == ["model_call_resent"]
    assert purse(story).doubtful_tokens == reserve.tokens
    assert purse(story).reserved == {"1.1.m1": reserve}
    story.reply(text="done", tokens=10)
    assert purse(story).tokens == reserve.tokens + 11
    assert story.tell(c.ResendModelCall(call="1.1.m1")) == []


def test_what_does_not_fit_twice_is_asked_about_before_it_is_asked_again() -> None:
    story = begun(tokens_max=PLENTY)
    [reserve] = purse(story).reserved.values()
    story = begun(tokens_max=reserve.tokens)
    assert story.tell(c.ResendModelCall(call="1.1.m1")) == ["model_call_failed", "retry_scheduled"]
    assert story.fire("backoff") == ["retry_fell_due", "budget_exceeded"]
    assert story.more(tokens=reserve.tokens)[-1] == "model_call_intended"
    assert story.reply(text="done")[-1] == "run_completed"


def test_a_tool_is_called_as_often_as_it_may_and_then_the_call_waits() -> None:
    story = begun(calls_max={"look": 1})
    told = story.reply(call("look", "a"), call("look", "b"), call("save"))
    assert told[1:] == ["tool_call_intended", "budget_exceeded", "tool_call_intended"]
    [wait] = waits(story)
    assert (wait["call"], wait["tool"], wait["short_of"]) == ("1.1.t1", "look", "calls")
    assert run_row(SESSION, story.state).status == "running"
    story.result("save")
    assert story.more(calls={"look": 1}, call="1.1.t1") == ["budget_raised", "tool_call_intended"]
    assert story.more(calls={"look": 1}, call="1.1.t1") == []
    assert story.refused is not None
    assert story.refused.code == "not_waiting"
    assert purse(story).calls == {"look": 2, "save": 1}


def test_a_call_that_waits_for_approval_is_spoken_for() -> None:
    story = Story(spending(calls_max={"pay": 1}), Rules(pay=ask()), prices=PRICES)
    story.message()
    told = story.reply(call("pay", "a"), call("pay", "b"))
    assert told[1:] == ["approval_requested", "budget_exceeded"]
    assert story.decide("deny")[0] == "tool_call_denied"
    assert story.more() == ["budget_raised", "approval_requested"]
    assert story.decide("approve", "1.1.t1") == ["approval_given", "tool_call_intended"]


def test_whoever_gives_no_more_has_the_model_told_or_the_run_fail() -> None:
    story = begun(calls_max={"look": 0})
    story.reply(call("look"))
    assert story.no_more(reason="enough") == ["tool_call_denied", "model_call_intended"]
    assert "ann gave no more: enough" in story.contents()[-1]
    story = begun(tokens_max=1)
    assert story.no_more() == ["run_failed"]
    assert story.state.run is not None
    assert (story.state.run.code, story.no_more()) == ("budget_exceeded", [])


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"run": "r9", "tokens": 1}, "not_running"),
        ({"tokens": -1}, "invalid_amount"),
        ({"tokens": 10**16}, "invalid_amount"),
        ({"cost_micros": 1}, "not_limited"),
        ({"calls": {"look": 1}}, "not_limited"),
        ({}, "nothing_raised"),
        ({"tokens": 1, "call": "1.1.p1"}, "not_waiting"),
        ({"tokens": 1, "held": ("sales",)}, "not_entitled"),
    ],
)
def test_what_cannot_be_raised_is_refused_by_name(more: dict[str, Any], code: str) -> None:
    story = begun(tokens_max=PLENTY, roles=("finance",))
    before = story.state
    assert story.more(**more) == []
    assert story.refused is not None
    assert (story.refused.code, story.state) == (code, before)
    assert story.more(tokens=1, held=("finance",)) == ["budget_raised"]


def test_a_run_without_a_budget_or_that_has_ended_cannot_be_raised() -> None:
    story = Story()
    story.message()
    assert (story.more(tokens=1), story.refused and story.refused.code) == ([], "no_budget")
    story.reply(text="done")
    assert (story.more(tokens=1), story.refused and story.refused.code) == ([], "not_running")


def test_who_raises_late_is_told_who_was_first() -> None:
    story = begun(tokens_max=1)
    story.more(tokens=PLENTY, call="1.1.p1", by="bob")
    assert story.more(tokens=PLENTY, call="1.1.p1") == []
    assert story.refused is not None
    assert story.refused.code == "already_decided"
    assert "raised by bob" in story.refused.message


def test_a_run_with_its_own_budget_keeps_the_tighter_one_and_a_retry_what_it_had() -> None:
    story = Story(spending(tokens_max=10_000, calls_max={"look": 5}), prices=PRICES)
    story.message("hello", budget=Budget(tokens_max=PLENTY, calls_max={"look": 1, "save": 2}))
    assert purse(story).allotted == Budget(tokens_max=10_000, calls_max={"look": 1, "save": 2})
    story.more(tokens=500)
    story.fail("validation", "status_400")
    story.message(None, retry_of="r1")
    assert purse(story).allotted.tokens_max == 10_500
    assert tightest(None, None) is None


def test_a_steering_message_waits_until_the_budget_is_raised() -> None:
    story = begun(tokens_max=1)
    assert story.message("and hurry", "steer") == []
    told = story.more(tokens=PLENTY)
    assert told == ["budget_raised", "message_received", "model_call_intended"]


def test_an_interrupted_run_waits_no_more() -> None:
    story = begun(tokens_max=1)
    told = story.message("never mind", "interrupt")
    assert told[0] == "run_cancelled"
    assert purse(story).breaches == 1
    story = begun(calls_max={"look": 0})
    story.reply(call("look"))
    story.cancel()
    assert "did not fit into the budget" in story.contents()[-1]


def test_a_purse_survives_its_snapshot() -> None:
    story = begun(tokens_max=PLENTY, calls_max={"look": 0})
    story.reply(call("look"))
    assert decode_snapshot(encode_snapshot(story.state)) == story.state


@pytest.mark.parametrize(
    ("budget", "wrong"),
    [
        (Budget(tokens_max=-1), "tokens_max is between 0 and .*, not -1"),
        (Budget(cost_micros_max=1, currency="EUR"), "currency is 'EUR'; .*USD alone"),
        (Budget(calls_max={"look": -2}), r"calls_max\['look'\] is between"),
        (Budget(calls_max={"loook": 2}), "'loook', which is no tool .* those are: look, save"),
        (Budget(wall_ms_max=10**16), "wall_ms_max"),
        (Budget(calls_max={str(n): 1 for n in range(200)}), "at most 128 tools"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(budget: Budget, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        check_budget(budget, ("save", "look"), "agent 'clerk'")


def test_money_is_counted_in_whole_millionths_and_rounded_up() -> None:
    rate = PRICES.rate("anthropic:m")
    assert rate is not None
    assert cost_micros(rate, Usage(1, 0)) == 3
    assert cost_micros(rate, Usage(1, 0, 1)) == 1
    assert worst_micros(rate, 1, 1) == 19
    assert PRICES.rate("x") is None
    assert (money(1_500_000), money(-1), micros_of("1.5")) == ("1.500000", "-0.000001", 1_500_000)
    with pytest.raises(InvalidInput, match="at most six decimals"):
        micros_of("1.1234567")
