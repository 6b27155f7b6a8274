"""Keys as text: their shape, their checksum, their ids."""

from __future__ import annotations

import re

import pytest

from perdure.ports.entries import Scope
from perdure.server.tokens import key_id, keyed_hash, make_token
from tests.server.chance import fresh

PEPPER = b"p" * 32


@pytest.mark.parametrize(
    ("scope", "prefix"), [("admin", "prd"), ("run", "prd"), ("read", "prd"), ("worker", "nrnw")]
)
def test_a_key_has_a_prefix_an_id_and_a_secret(scope: Scope, prefix: str) -> None:
    token = make_token(scope, fresh)
    assert re.fullmatch(rf"{prefix}_[0-9A-Za-z]{{11}}_[0-9A-Za-z]{{49}}", token)
    assert key_id(token, PEPPER) == token.split("_")[1]


@pytest.mark.parametrize("data", [b"\x00", b"\xff"])
def test_the_smallest_and_the_largest_key_are_as_long_as_any(data: bytes) -> None:
    token = make_token("admin", lambda size: data * size)
    assert len(token) == 65
    assert key_id(token, PEPPER) == token[4:15]


def test_one_wrong_character_is_always_noticed() -> None:
    token = make_token("admin", fresh)
    for at, right in enumerate(token):
        wrong = "a" if right != "a" else "b"
        changed = token[:at] + wrong + token[at + 1 :]
        if changed.startswith("prd_"):
            assert key_id(changed, PEPPER) is None, at


@pytest.mark.parametrize(
    "token",
    [
        "",
        "prd_",
        "prd_short",
        "nrnw_something_that_is_none",
        "tooshort",
        "x" * 257,
        "prd_" + "a" * 61,
        "nrn_caf\u00e9_0123456789abcdef",
        "nrn_\ud8000123456789abcdef",
    ],
)
def test_what_cannot_be_a_key_has_no_id(token: str) -> None:
    assert key_id(token, PEPPER) is None


def test_the_id_of_somebody_else_s_key_is_a_hash_that_needs_the_pepper() -> None:
    token = "nrn_0123456789abcdef"
    found = key_id(token, PEPPER)
    assert found is not None
    assert found == key_id(token, PEPPER) != key_id(token, b"q" * 32)
    assert found != key_id(f"{token}0", PEPPER)
    assert not keyed_hash(PEPPER, "key", token).startswith(found)
