"""What went wrong with a model call, told in our words and without secrets.

pydantic-ai wraps what the SDKs raise, and these wrap what the HTTP client raises; the facts that
matter (status, headers, body) are looked for along the whole chain of causes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from perdure.adapters.models.streams import incomplete
from perdure.core.limits import clip
from perdure.ports.models import ModelError

SECRET_CHARS_MIN = 8
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$")

IN_STREAM_STATUS = {
    "api_error": 500,
    "authentication_error": 401,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "timeout_error": 504,
}
"""Type of an error that came inside a stream -> the status it would have had before the stream."""

QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_error"})
"""Types and codes of errors that no waiting helps against, though some come as a 429."""


def model_error(error: BaseException, who: str, secrets: tuple[str, ...] = ()) -> ModelError:
    """Return what `error` means for the caller; `who` is the model's name.

    None of `secrets`, and no value of an environment variable that holds one, is in its text.
    """
    told = _told(error, who)
    told.args = (clip(scrubbed(str(told), secrets)),)
    return told


def _told(error: BaseException, who: str) -> ModelError:
    import httpx2
    from pydantic_ai.exceptions import UnexpectedModelBehavior

    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, ModelError):
            return link
    status, kind, text = _reported(chain)
    if status is not None:
        return _refused(who, status, kind, text, _retry_after_ms(chain))
    if any(isinstance(link, TimeoutError | httpx2.TimeoutException) for link in chain):
        return ModelError(f"{who} timed out", error_class="transient", code="timeout")
    for link in chain:
        if isinstance(link, httpx2.TransportError):
            why = str(link) or type(link).__name__
            return ModelError(
                f"the connection to {who} failed: {why}",
                error_class="transient",
                code="connection_lost",
            )
    if any(isinstance(link, UnexpectedModelBehavior | ValueError) for link in chain):
        return incomplete(f"{who} sent something that cannot be read: {error}")
    if text:
        return ModelError(f"{who} reported an error: {text}")
    return ModelError(
        f"asking {who} failed: {type(error).__name__}: {error}",
        error_class="internal",
        code="unexpected_failure",
    )


def _refused(
    who: str, status: int, kind: str | None, text: str, retry_after_ms: int | None
) -> ModelError:
    named = f" ({kind})" if kind else ""
    told = ModelError(
        f"{who} answered HTTP {status}{named}: {text or 'no explanation'}",
        status=status,
        retry_after_ms=retry_after_ms,
    )
    if kind in QUOTA:
        told.error_class, told.code = "validation", "quota_exhausted"
    elif not 400 <= status <= 599:
        told.error_class, told.code = "validation", f"status_{status}"
    return told


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _reported(chain: list[BaseException]) -> tuple[int | None, str | None, str]:
    """Return the status, the kind and the text of an error that the provider reported."""
    status: int | None = None
    kind: str | None = None
    text = ""
    for link in chain:
        found = getattr(link, "status_code", None)
        if isinstance(found, int) and found >= 300:
            status = found  # the innermost is what the server said
        body = getattr(link, "body", None)
        if isinstance(body, dict):
            told: Any = body.get("error", body)
            if isinstance(told, dict):
                codes = [told.get("code"), told.get("type")]
                kind = kind or next((c for c in codes if isinstance(c, str) and c), None)
                told = told.get("message")
            text = text or (told if isinstance(told, str) else "")
        elif isinstance(body, str):
            text = text or body
    return status or IN_STREAM_STATUS.get(kind or ""), kind, text


def _retry_after_ms(chain: list[BaseException]) -> int | None:
    for link in chain:
        headers = getattr(getattr(link, "response", None), "headers", None)
        if headers is None:
            continue
        try:
            return max(0, int(float(headers["retry-after-ms"])))
        except (KeyError, ValueError, OverflowError):
            return _milliseconds(headers.get("retry-after"), headers.get("date"))
    return None


def _milliseconds(after: str | None, now: str | None) -> int | None:
    """Return the value of a Retry-After header, in seconds or a date, as milliseconds."""
    if after is None:
        return None
    try:
        return max(0, int(float(after) * 1000))
    except (ValueError, OverflowError):
        due = _date(after)
    if due is None:
        return None
    # The server's own clock, if it said what it shows: ours may differ.
    start = _date(now) or datetime.now(UTC)
    return max(0, int((due - start).total_seconds() * 1000))


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def scrubbed(text: str, secrets: tuple[str, ...]) -> str:
    """Return text without secrets: the given ones and those in the environment."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()):
            secrets = (*secrets, value)
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= SECRET_CHARS_MIN:
            text = text.replace(secret, "[secret]")
    return text
