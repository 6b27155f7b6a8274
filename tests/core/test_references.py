"""What may stand for a secret, and what is taken for one."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.errors import InvalidInput
from perdure.core.references import check_credentials, is_key_shaped, scheme_of

RANDOM = "q7Zk2Lm9Xc4Vb1Nd8Ws5Rt3Yf6Gh0Jp"


@pytest.mark.parametrize(
    "reference",
    [
        "env:ANTHROPIC_API_KEY",
        "env:_x1",
        "file:/run/secrets/stripe",
        "file:/var/lib/kubelet/pods/0191d2f4-8b5e-7c21-9f3a-5d0c8e7b6a49/token",
        "vault:secret/data/team-a/stripe#api_key",
        "aws2:arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod/stripe",
    ],
)
def test_a_reference_says_where_a_secret_is(reference: str) -> None:
    """Its scheme says who resolves it."""
    check_credentials({"stripe": reference}, "agent 'a'")
    assert scheme_of(reference) == reference[: reference.index(":")]


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-api03-abcdefghijklmnop",
        "sk_live_abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "hunter2hunter2",
        "admin hunter2",
        "",
        "env:",
        "env:sk-ant-abcdefgh",
        f"env:{RANDOM}",
        "env:ghp_abcdefghijklmnop",
        "file:relative/path",
        f"vault:{RANDOM}",
        "vault:sk-proj-abcdefgh",
        "postgresql://user:hunter2hunter2@db/x",
        "https://user:hunter2@vault/secret",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
        "-----BEGIN PRIVATE KEY-----",
        "Vault:upper",
        "vault:" + "x" * 600,
        7,
        None,
        b"env:KEY",
    ],
)
def test_what_is_no_reference_is_refused_and_not_repeated(secret: Any) -> None:
    """A name of it is said, and what was expected."""
    with pytest.raises(InvalidInput) as refused:
        check_credentials({"stripe": secret}, "agent 'a'")
    told = str(refused.value)
    assert "agent 'a': credentials['stripe']" in told
    assert "env:STRIPE_KEY" in told
    assert not secret or str(secret) not in told.replace("'env:STRIPE_KEY'", "")


@pytest.mark.parametrize("name", ["", "sk-ant-abcdefgh1234", RANDOM, "a b", 5, "x" * 65])
def test_a_secret_in_the_place_of_a_name_is_not_repeated_either(name: Any) -> None:
    """Keys and values are easily swapped."""
    with pytest.raises(InvalidInput) as refused:
        check_credentials({name: "env:KEY"}, "agent 'a'")
    assert not name or str(name) not in str(refused.value).replace("1 to 64", "")


def test_only_a_dict_is_a_dict() -> None:
    """A list that holds a secret is not repeated."""
    with pytest.raises(InvalidInput) as refused:
        check_credentials(["sk-abcdefghijk"], "agent 'a'")
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "claude-sonnet-5",
        "anthropic:claude-haiku-4-5-20251001",
        "You are a helpful assistant. Ask before you pay.",
        "gpt-5-mini-2025-08-07",
        "0191d2f4-8b5e-7c21-9f3a-5d0c8e7b6a49",
        "https://example.com/a/b?c=d",
        "context_strategy",
        "DATABASE_PASSWORD_OF_THE_REPLICA",
    ],
)
def test_ordinary_text_is_no_key(text: str) -> None:
    """Else nobody could write a reference, or a prompt."""
    assert not is_key_shaped(text)
