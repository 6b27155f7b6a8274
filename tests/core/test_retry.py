"""Failures of model calls: how they are recognised, and when they are tried again."""

from __future__ import annotations

import pytest

from perdure.core.retry import DELAY_MS_MAX, POLICY, Failure, classify, delay_before_retry


@pytest.mark.parametrize(
    ("message", "status", "expected"),
    [
        ("anything", 429, ("external_dependency", "rate_limited")),
        ("anything", 529, ("external_dependency", "upstream_unavailable")),
        ("anything", 500, ("external_dependency", "upstream_unavailable")),
        ("anything", 408, ("transient", "timeout")),
        ("anything", 401, ("validation", "not_authorised")),
        ("anything", 400, ("validation", "status_400")),
        ("Error code: 429 - {'type': 'error'}", None, ("external_dependency", "rate_limited")),
        ("HTTP/1.1 503 Service Unavailable", None, ("external_dependency", "upstream_unavailable")),
        (
            "status_code: 529, body: overloaded_error",
            None,
            ("external_dependency", "upstream_unavailable"),
        ),
        ("429 Too Many Requests", None, ("external_dependency", "rate_limited")),
        ("litellm.RateLimitError: slow down", None, ("external_dependency", "rate_limited")),
        ("Overloaded", None, ("external_dependency", "upstream_unavailable")),
        ("Request timed out.", None, ("transient", "timeout")),
        ("Connection reset by peer", None, ("transient", "connection_lost")),
        ("ConnectionError: nobody there", None, ("transient", "connection_lost")),
        ("All connection attempts failed", None, ("transient", "connection_lost")),
        ("worker disconnected", None, ("transient", "worker_disconnected")),
        ("Incorrect API key provided", None, ("validation", "not_authorised")),
        ("I ate 429 apples", None, ("internal", "unexpected_failure")),
        ("KeyError: 'x'", None, ("internal", "unexpected_failure")),
    ],
)
def test_a_failure_is_recognised_in_any_form(
    message: str, status: int | None, expected: tuple[str, str]
) -> None:
    failure = classify(message, status)
    assert (failure.error_class, failure.code) == expected


@pytest.mark.parametrize(
    ("message", "delay_ms"),
    [
        ("429, Retry-After: 7", 7_000),
        ("please try again in 350ms", 350),
        ("Please try again in 1.5s.", 1_500),
        ("retry after 2 minutes", 120_000),
        ("429", None),
    ],
)
def test_a_delay_in_the_text_is_read(message: str, delay_ms: int | None) -> None:
    assert classify(message).retry_after_ms == delay_ms


@pytest.mark.parametrize(
    ("code", "delays_ms"),
    [
        ("rate_limited", [15_000 * n for n in range(1, 11)]),
        ("upstream_unavailable", [1_000, 2_000, 4_000]),
    ],
)
def test_delays_grow_as_the_policy_says_and_then_end(code: str, delays_ms: list[int]) -> None:
    failure = Failure("external_dependency", code, "x")
    found = [delay_before_retry(failure, n, 0.0) for n in range(len(delays_ms) + 1)]
    assert found == [*delays_ms, None]


def test_chance_spreads_a_delay_by_at_most_a_tenth_and_there_is_a_ceiling() -> None:
    failure = Failure("external_dependency", "rate_limited", "x")
    assert delay_before_retry(failure, 0, 0.999) in range(15_000, 16_500)
    assert delay_before_retry(failure, 0, 0.0) == 15_000
    long = Failure("external_dependency", "rate_limited", "x", retry_after_ms=10**9)
    assert delay_before_retry(long, 0, 0.5) == DELAY_MS_MAX


def test_what_is_not_in_the_policy_is_never_tried_again() -> None:
    for error_class in ("validation", "policy", "internal"):
        assert (error_class, "x") not in POLICY
        assert delay_before_retry(Failure(error_class, "x", ""), 0, 0.0) is None
