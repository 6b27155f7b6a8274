"""The models hold, they meet what they have to, and without any one of their rules they fail."""

from __future__ import annotations

import pytest

from tests.models import tlc

LEASE = tlc.MODELS / "Lease.tla"
HANDOVER = tlc.MODELS / "Handover.tla"
ONCE = {"Effects": '{"once"}', "ClaimsMax": "1"}

CONTROLS = [
    (LEASE, ["no token", "no version"], {}, {"HolderWrites", "DirectBase", "EpochsGrow"}),
    (LEASE, ["no token"], {}, {"HolderWrites"}),
    (LEASE, ["no nonce"], {}, {"HolderWrites"}),
    (LEASE, ["no version"], {}, {"DirectBase"}),
    (LEASE, ["load before claim"], {}, {"DirectBase"}),
    (LEASE, ["send before durable"], {}, {"IntentFirst"}),
    (LEASE, ["proceed before begun"], {}, {"IntentFirst"}),
    (LEASE, ["late outcome accepted"], {}, {"OneOutcome"}),
    (LEASE, ["key names attempt"], {}, {"OneEffectPerCall"}),
    (LEASE, ["once is sent again"], {"Effects": '{"once"}'}, {"OnceAtMostOnce"}),
    (LEASE, ["probe does not bind"], ONCE, {"OnceAtMostOnce"}),
    (HANDOVER, ["proceed before begun is durable"], {}, {"BegunFirst"}),
    (HANDOVER, ["holder does not wait"], {}, {"BegunFirst"}),
    (HANDOVER, ["the log names no holder"], {}, {"BegunIsNotSentAgain"}),
    (HANDOVER, ["a lost beginning is begun again"], {}, {"BegunIsNotSentAgain", "BegunFirst"}),
    (HANDOVER, ["replaced after somebody was told"], {}, {"BegunFirst", "BegunIsNotSentAgain"}),
    (HANDOVER, ["a lend is taken twice"], {}, {"OnceAtMostOnce"}),
    (HANDOVER, ["results travel on the bus alone"], {}, {"ResultIsKept"}),
]
"""Model, its flaws, constants, and the invariants of which one has to fail."""


@pytest.fixture(autouse=True)
def checker_is_here() -> None:
    """Skip where there is no TLC."""
    if reason := tlc.missing():
        pytest.skip(reason)


@pytest.mark.parametrize("model", [LEASE, HANDOVER], ids=lambda model: model.stem)
def test_a_model_holds_and_meets_what_it_has_to(model) -> None:
    checked = tlc.check(model)
    assert checked.violated is None, checked.text
    assert checked.met == tlc.sights(model)
    assert checked.states > 10_000


@pytest.mark.parametrize(
    "model, flaws, constants, invariants",
    CONTROLS,
    ids=[", ".join(flaws) for _, flaws, *_ in CONTROLS],
)
def test_without_a_rule_an_invariant_fails(model, flaws, constants, invariants) -> None:
    named = "{" + ", ".join(f'"{flaw}"' for flaw in flaws) + "}"
    checked = tlc.check(model, {**constants, "Flaws": named})
    assert checked.violated in invariants, checked.text


@pytest.mark.parametrize("model", [LEASE, HANDOVER], ids=lambda model: model.stem)
def test_every_flaw_of_a_model_is_tried(model) -> None:
    assert tlc.flaws(model) == {
        flaw for tried, flaws, *_ in CONTROLS if tried == model for flaw in flaws
    }


def test_a_constant_that_a_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="sets no constant 'Claims'"):
        tlc.check(LEASE, {"Claims": "2"})
