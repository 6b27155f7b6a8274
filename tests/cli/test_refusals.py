"""What a server's refusal is on the command line: a kind with an exit code, and words."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.cli.common import exit_code
from perdure.cli.refusals import refusal
from perdure.client import ApiError

URL = "http://127.0.0.1:4000"
KEY = "prd_abcdefghijklmnopqrstuvwxyz"
WORKER = "nrnw_abcdefghijklmnopqrstuvwxyz"
KEPT = ".perdure/dev.key"


@pytest.mark.parametrize(
    ("asked", "status", "error", "code", "said"),
    [
        ("GET /api/v1/runs/99", 404, "not found", 3, f"there is no run 99 on {URL}"),
        ("POST /api/v1/runs/99/cancel", 404, "not found", 3, f"there is no run 99 on {URL}"),
        ("DELETE /api/v1/api_keys/5", 404, "not found", 3, f"there is no key 5 on {URL}"),
        ("POST /api/v1/deliveries/5/retry", 404, "not found", 3, "there is no delivery 5 on"),
        (
            "GET /api/v1/agents/1/conversations/a%2Fb",
            404,
            "not found",
            3,
            "there is no session 'a/b' of agent 1 on",
        ),
        ("POST /api/v1/agents/1/messages", 404, "gard not found", 3, "gard not found"),
        ("POST /api/v1/runs/1/reply", 409, "agent is busy", 6, "refused this: agent is busy"),
        ("POST /api/v1/triggers", 422, {"cron": ["is invalid"]}, 2, "this: cron is invalid"),
        ("POST /api/v1/triggers", 413, "too large", 2, "too large"),
        ("POST /api/v1/triggers", 429, "too many", 2, "too many"),
        ("POST /api/v1/triggers", 503, "no disk", 11, "no disk"),
        ("POST /api/v1/triggers", 500, "internal server error", 1, "internal server error"),
    ],
)
def test_a_status_is_a_kind_of_error(
    asked: str, status: int, error: Any, code: int, said: str
) -> None:
    found = refusal(ApiError(asked, status, error), URL, KEY, None)
    assert exit_code(found) == code
    assert said in str(found)


@pytest.mark.parametrize(
    ("status", "key", "kept_in", "said"),
    [
        (401, KEY, None, f"the server at {URL} does not know the key prd_abcd..., or no longer"),
        (401, "short-key", None, "does not know the key sho..., or no longer"),
        (401, KEY, KEPT, f"has kept in {KEPT}: a server of another folder may be running there"),
        (401, WORKER, None, "the key nrnw_abc... is a worker's: it is good for `perdure worker`"),
        (403, KEY, None, f"it needs the scope admin (the key used is prd_abcd..., at {URL})"),
    ],
)
def test_a_refused_key_is_named_and_not_shown(
    status: int, key: str, kept_in: str | None, said: str
) -> None:
    words = "unauthorized" if status == 401 else "it needs the scope admin"
    found = refusal(ApiError("GET /api/v1/runs", status, words), URL, key, kept_in)
    assert exit_code(found) == 1
    assert said in str(found)
    assert key not in str(found)
