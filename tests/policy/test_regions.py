"""Where a policy can change its mind: between two constants every number is as good as another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.policy.regions import Scale, examples, minutes, values
from perdure.policy.rules import Predicate
from tests.policy.desk import allow, policy

NUMBERS = st.one_of(
    st.integers(-(2**53), 2**53), st.floats(-(2.0**53), 2.0**53), st.sampled_from([0.1, 0.2, 1.5])
)
SCALES = st.lists(NUMBERS, unique=True, max_size=5).map(lambda some: Scale(tuple(sorted(some))))


@given(SCALES, NUMBERS, NUMBERS)
def test_places_are_in_the_order_of_the_numbers(scale: Scale, one: float, other: float) -> None:
    if one <= other:
        assert scale.place(one) <= scale.place(other)
    for constant in scale.constants:
        assert (one < constant) is (scale.place(one) < scale.place(constant))
        assert (one == constant) is (scale.place(one) == scale.place(constant))


@given(SCALES)
def test_a_place_has_a_number_that_is_at_it(scale: Scale) -> None:
    """Unless two constants are neighbours among the numbers that a machine has."""
    for place in scale.places:
        number = scale.number(place)
        if number is not None:
            assert scale.place(number) == place
        else:
            below, above = scale.constants[place // 2 - 1], scale.constants[place // 2]
            assert (below + above) / 2 in (below, above)


def test_numbers_of_places_are_whole_where_they_can_be() -> None:
    scale = Scale((1, 2, 7.5))
    assert [scale.number(place) for place in scale.places] == [0, 1, 1.5, 2, 3, 7.5, 8]
    assert [Scale(()).number(place) for place in Scale(()).places] == [0]


def test_values_are_of_every_kind_and_from_every_place() -> None:
    asked = (
        Predicate("x", over=10),
        Predicate("x", one_of=("a", True)),
        Predicate("x", matches="b*"),
    )
    found = values(asked)
    assert [found.count(one) for one in (None, "a", "b", "bx", 9, 10, 11, ["other"])] == [1] * 8
    assert True in found
    assert False in found


def test_examples_of_a_glob_match_it_and_one_does_not() -> None:
    assert examples("a*b*") == ("ab", "axbx", "not a*b*")
    assert examples("a") == ("a", "not a")


def test_minutes_are_the_ends_of_hours() -> None:
    hours = {"from": "22:00", "to": "06:00", "days": ["sun"]}
    gate = policy(allow("a", hours=hours), allow("b"), allow("c", hours={"days": ["mon"]}))
    week = 7 * 24 * 60
    assert minutes(gate.document.rule) == [0, 6 * 60, 24 * 60, week - 2 * 60]
