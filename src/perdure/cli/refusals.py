"""What a server refused, as the errors of this program: in words, with the exit codes of these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from perdure.core.errors import (
    InvalidInput,
    LimitExceeded,
    NotFound,
    PerdureError,
    Refused,
    Unavailable,
)

if TYPE_CHECKING:
    from perdure.client import ApiError

MEANS: Mapping[int, type[PerdureError]] = {
    400: InvalidInput,
    404: NotFound,
    409: Refused,
    413: LimitExceeded,
    415: InvalidInput,
    422: InvalidInput,
    429: LimitExceeded,
    503: Unavailable,
}
"""The error that an answer's status stands for; any other is one without a kind."""
NOUNS = {
    "api_keys": "key",
    "deliveries": "delivery",
    "standing_approvals": "standing approval",
}
"""Nouns of the API that are not called so here, or whose plural has more than an `s`."""
NOT_FOUND = "not found"
CONVERSATION = "/conversations/"
WORKER_KEY_PREFIX = "nrnw_"
KEY_CHARS_SHOWN_MAX = 8
_THING = re.compile(r"/api/v1/(\w+)/([^/]+)(/.*)?$")


def refusal(error: ApiError, url: str, key: str, kept_in: str | None) -> PerdureError:
    """Return what a refusal by the server at `url` means to a person.

    `kept_in` is the file that `key` came from, if nobody gave it.
    """
    if error.status == 401:
        return PerdureError(_unknown_key(url, key, kept_in))
    if error.status == 403:
        return PerdureError(f"{error.words} (the key used is {shown(key)}, at {url})")
    if error.status == 404:
        return NotFound(_missing(error, url))
    kind: Any = MEANS.get(error.status, PerdureError)
    said = f"the server at {url} refused this: {error.words}"
    return Refused(said, "refused") if kind is Refused else kind(said)


def shown(key: str) -> str:
    """Return the beginning of a key, by which who has it can tell it from his others."""
    return f"{key[: min(KEY_CHARS_SHOWN_MAX, len(key) // 3)]}..."


def _unknown_key(url: str, key: str, kept_in: str | None) -> str:
    if key.startswith(WORKER_KEY_PREFIX):
        return (
            f"the key {shown(key)} is a worker's: it is good for `perdure worker` alone. Give one "
            f"of the scope read, run or admin of the server at {url}, with --key or PERDURE_KEY"
        )
    if kept_in is not None:
        return (
            f"the server at {url} does not know the key {shown(key)}, which `perdure dev` has kept "
            f"in {kept_in}: a server of another folder may be running there. Stop that one, name "
            "yours with --url, or give a key with --key or PERDURE_KEY"
        )
    return (
        f"the server at {url} does not know the key {shown(key)}, or no longer: give another one "
        "with --key or PERDURE_KEY"
    )


def _missing(error: ApiError, url: str) -> str:
    found = _THING.search(error.asked)
    if error.words != NOT_FOUND or found is None:
        return f"the server at {url} has not found it: {error.words}"
    noun, which, rest = found.groups()
    if (key := (rest or "").removeprefix(CONVERSATION)) != (rest or ""):
        return f"there is no session {unquote(key)!r} of agent {which} on {url}"
    return f"there is no {NOUNS.get(noun, noun.removesuffix('s'))} {which} on {url}"
