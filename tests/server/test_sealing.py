"""What is sealed can be opened by whoever has the pepper, and by nobody else."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest

from perdure.core.errors import InvalidInput
from perdure.server.sealing import VERSION, Seal
from tests.server.chance import fresh

SEAL = Seal(b"p" * 32, fresh)


@pytest.mark.parametrize("text", ["", "a", "x" * 31, "x" * 32, "x" * 33, "x" * 5_000, "\u00e9\0"])
def test_it_comes_back_and_is_not_to_be_seen(text: str) -> None:
    sealed = SEAL.seal(text)
    assert SEAL.unseal(sealed) == text
    assert sealed.isascii()
    kept = urlsafe_b64decode(sealed.removeprefix(VERSION))
    assert len(text) < 2 or text.encode() not in kept


def test_the_same_text_is_sealed_differently_each_time() -> None:
    assert SEAL.seal("secret") != SEAL.seal("secret")
    long = [urlsafe_b64decode(SEAL.seal("\0" * 64).removeprefix(VERSION)) for _ in range(2)]
    assert not {long[0][at : at + 32] for at in (16, 48)} & {
        long[1][at : at + 32] for at in (16, 48)
    }
    assert long[0][16:48] != long[0][48:80]


def test_one_changed_bit_is_refused() -> None:
    kept = urlsafe_b64decode(SEAL.seal("secret").removeprefix(VERSION))
    for at in range(len(kept)):
        changed = kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :]
        with pytest.raises(InvalidInput, match="set it again"):
            SEAL.unseal(VERSION + urlsafe_b64encode(changed).decode())


@pytest.mark.parametrize("sealed", ["", "v1.", "secret", "v1.AAAA", "v1.\u00e9", "v1." + "A" * 64])
def test_what_was_never_sealed_is_refused(sealed: str) -> None:
    with pytest.raises(InvalidInput):
        SEAL.unseal(sealed)


def test_another_pepper_opens_nothing() -> None:
    with pytest.raises(InvalidInput, match="another pepper"):
        Seal(b"q" * 32, fresh).unseal(SEAL.seal("secret"))
