"""What kind of failure a model call met, and whether and when it is tried again.

Providers, SDKs and workers report failures in every form, often only as text; the text is read, so
that a 429 is a 429 however it arrives. The policy is a table: class and code to a number of retries
and a delay that grows linearly or doubles. A provider's own Retry-After wins when it is longer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from perdure.core.events import ErrorClass
from perdure.core.limits import clip

DELAY_MS_MAX = 15 * 60_000
JITTER_PART = 0.1


class Failure(msgspec.Struct, frozen=True):
    """A classified failure of a model call."""

    error_class: ErrorClass
    code: str
    message: str
    retry_after_ms: int | None = None


class RetryRule(msgspec.Struct, frozen=True):
    """At most `retries_max` retries, the n-th (from 0) after `base_ms` * (n+1) or * 2**n."""

    retries_max: int
    base_ms: int
    growth: Literal["linear", "double"]


POLICY: Mapping[tuple[str, str], RetryRule] = {
    ("external_dependency", "rate_limited"): RetryRule(10, 15_000, "linear"),
    ("external_dependency", "upstream_unavailable"): RetryRule(3, 1_000, "double"),
    ("transient", "timeout"): RetryRule(3, 1_000, "double"),
    ("transient", "connection_lost"): RetryRule(3, 1_000, "double"),
    ("transient", "worker_disconnected"): RetryRule(3, 1_000, "double"),
    ("transient", "incomplete_reply"): RetryRule(3, 1_000, "double"),
    ("transient", "missing_api_key"): RetryRule(3, 1_000, "double"),
    ("transient", "model_differs"): RetryRule(3, 1_000, "double"),
}

_STATUS = re.compile(
    r"(?:status(?:[ _]?code)?|HTTP(?:/\d(?:\.\d)?)?|error(?: code)?)\W{0,4}(\d{3})\b", re.IGNORECASE
)
_LEADING_STATUS = re.compile(r"^\W*(4\d\d|5\d\d)\b")
_RETRY_AFTER = re.compile(
    r"(?:retry[ -]?after|try again in)\W{0,4}(\d+(?:\.\d+)?)\s*(ms|s\b|seconds?|m\b|minutes?)?",
    re.IGNORECASE,
)
_WORDS: tuple[tuple[re.Pattern[str], ErrorClass, str], ...] = (
    (
        re.compile(r"rate.?limit|too many requests|quota", re.IGNORECASE),
        "external_dependency",
        "rate_limited",
    ),
    (
        re.compile(
            r"overloaded|service ?unavailable|bad ?gateway|internal ?server ?error", re.IGNORECASE
        ),
        "external_dependency",
        "upstream_unavailable",
    ),
    (re.compile(r"timed? ?out|timeout|deadline exceeded", re.IGNORECASE), "transient", "timeout"),
    (re.compile(r"worker disconnected", re.IGNORECASE), "transient", "worker_disconnected"),
    (
        re.compile(
            r"connection ?(?:reset|refused|closed|error|aborted|lost)|connection attempts? failed"
            r"|disconnected|\beof\b",
            re.IGNORECASE,
        ),
        "transient",
        "connection_lost",
    ),
    (
        re.compile(r"api.?key|unauthori[sz]ed|authentication|permission", re.IGNORECASE),
        "validation",
        "not_authorised",
    ),
)


def classify(message: str, status: int | None = None, retry_after_ms: int | None = None) -> Failure:
    """Return what kind of failure `message` (and an HTTP `status`, if there was one) tells of."""
    if status is None:
        found = _STATUS.search(message) or _LEADING_STATUS.search(message)
        status = int(found.group(1)) if found else None
    if retry_after_ms is None:
        retry_after_ms = _retry_after_ms(message)
    error_class, code = _by_status(status) or _by_words(message)
    return Failure(error_class, code, clip(message), retry_after_ms)


def _by_status(status: int | None) -> tuple[ErrorClass, str] | None:
    if status is None or status < 400 or status > 599:
        return None
    if status == 429:
        return "external_dependency", "rate_limited"
    if status >= 500:
        return "external_dependency", "upstream_unavailable"
    if status == 408:
        return "transient", "timeout"
    if status in (401, 403):
        return "validation", "not_authorised"
    return "validation", f"status_{status}"


def _by_words(message: str) -> tuple[ErrorClass, str]:
    for pattern, error_class, code in _WORDS:
        if pattern.search(message):
            return error_class, code
    return "internal", "unexpected_failure"


def _retry_after_ms(message: str) -> int | None:
    found = _RETRY_AFTER.search(message)
    if not found:
        return None
    unit = (found.group(2) or "s").lower()
    factor = 1 if unit == "ms" else 60_000 if unit.startswith("m") else 1_000
    return min(DELAY_MS_MAX, int(float(found.group(1)) * factor))


def delay_before_retry(failure: Failure, retries_done: int, chance: float) -> int | None:
    """Return how long to wait before the next attempt in milliseconds; None: do not try again.

    `chance` in [0, 1) spreads retries by up to a tenth, so that a crowd does not come back at once.
    """
    rule = POLICY.get((failure.error_class, failure.code))
    if rule is None or retries_done >= rule.retries_max:
        return None
    factor = retries_done + 1 if rule.growth == "linear" else 2**retries_done
    delay = max(rule.base_ms * factor, failure.retry_after_ms or 0)
    return min(DELAY_MS_MAX, int(delay * (1 + JITTER_PART * chance)))
