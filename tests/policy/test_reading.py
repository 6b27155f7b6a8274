"""Policies out of TOML and JSON: what is right is read, what is wrong is named with its line."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import ids
from perdure.core.errors import InvalidInput
from perdure.policy import limits
from perdure.policy.policy import Policy
from tests.policy.desk import allow, policy

SHOP = """\
version = 1
name = "shop"

[[rule]]
id = "small"
verdict = "allow"
tools = ["refund"]

[[rule]]
id = "large"
verdict = "ask"
reason = "a lot of money"
tools = ["refund", "pay_*"]
arguments = [
  { path = "cents", over = 1000 },
  { path = "order.country", one_of = ["KP", 7, true] },
]
hours = { from = "09:00", to = "17:00", days = ["mon"] }
needed = 2
roles = ["finance"]
expires_minutes = 60
"""


def refused(text: str | bytes) -> str:
    """Return what is said of a policy that is not taken."""
    read = Policy.from_json if isinstance(text, bytes) else Policy.from_toml
    with pytest.raises(InvalidInput) as found:
        read(text, "shop.json" if isinstance(text, bytes) else "shop.toml")  # type: ignore[arg-type]
    return str(found.value)


def test_toml_and_json_are_the_same_policy() -> None:
    shop = Policy.from_toml(SHOP, "shop.toml")
    again = Policy.from_json(shop.body, "body")
    assert (again.version, again.body, again.document) == (shop.version, shop.body, shop.document)
    assert shop.version == ids.digest(shop.body)
    assert (shop.name, len(shop.document.rule)) == ("shop", 2)


def test_the_version_says_what_is_said_and_not_how() -> None:
    spaced = "# a word\n" + SHOP.replace(" = ", "   =  ")
    assert Policy.from_toml(spaced, "").version == Policy.from_toml(SHOP, "").version
    other = SHOP.replace("over = 1000", "over = 1001")
    assert Policy.from_toml(other, "").version != Policy.from_toml(SHOP, "").version


# what stands in SHOP, what stands there instead, the line, and what is said of it
WRONG = [
    ("version = 1", "version = 2", 1, "'version': found 2, expected 1"),
    ("version = 1", "", None, "found no 'version', expected 1"),
    ('name = "shop"', 'nome = "shop"', 2, "found the key 'nome', expected one of version, name"),
    ('name = "shop"', 'name = "my shop"', 2, "'name': found 'my shop', expected 1 to 64 letters"),
    ('name = "shop"', 'name = "shop"\ndefault = "ask"', 3, "found 'ask', expected 'declared' or"),
    ('id = "large"', "", 9, "rule 2: found no 'id', expected 1 to 64 letters"),
    ('id = "large"', 'id = "so large"', 10, "'id': found 'so large', expected 1 to 64 letters"),
    ('id = "large"', 'id = "small"', 10, "'id': found 'small', which rule 1 has already"),
    ('id = "large"', 'id = "not_granted"', 10, "which stands for a verdict without a rule"),
    ('id = "large"', 'id = "unresolved_call"', 10, "which stands for a verdict without a rule"),
    ('verdict = "ask"', 'verdict = "maybe"', 11, "found 'maybe', expected 'allow', 'ask' or"),
    ('verdict = "ask"', "", 9, "rule 2 ('large'): found no 'verdict'"),
    ('verdict = "ask"', 'verdict = "allow"', 19, "found 'needed' in a rule that says 'allow'"),
    ('reason = "a lot of money"', "", 9, "found no 'reason', expected a text of 1 to 1000"),
    ('reason = "a lot of money"', 'reason = ""', 12, "'reason': found '', expected a text of 1 to"),
    ('tools = ["refund", "pay_*"]', "tools = []", 13, "found a list of 0, expected a list of one"),
    ('tools = ["refund", "pay_*"]', 'tools = "pay"', 13, "found 'pay', expected a list of one to"),
    ('tools = ["refund", "pay_*"]', 'tools = ["x", 3]', 13, "'tools': found 3, expected a list of"),
    ('tools = ["refund", "pay_*"]', 'effects = ["write"]', 13, "found 'write', expected a list of"),
    ('tools = ["refund", "pay_*"]', "tool = 3", 13, "found the key 'tool', expected one of id,"),
    ('path = "cents"', 'path = ".cents"', 15, "'path': found '.cents', expected names with dots"),
    ('path = "cents"', 'way = "cents"', 14, "found the key 'way', expected one of path, equals"),
    (", over = 1000", "", 15, "found none, expected exactly one of equals, one_of, over"),
    ("over = 1000", "over = 1, under = 2", 15, "found 'over' and 'under', expected exactly one"),
    ("over = 1000", 'over = "1000"', 15, "'over': found '1000', expected a number between"),
    ("over = 1000", "over = true", 15, "'over': found true, expected a number between"),
    ("over = 1000", "over = nan", 15, "'over': found nan, expected a number between"),
    ("over = 1000", "over = inf", 15, "'over': found inf, expected a number between"),
    ("over = 1000", f"over = {2**53 + 1}", 15, "found 9007199254740993, expected a number between"),
    ("over = 1000", f"over = 0x{'f' * 9999}", 15, "'over': found a number of 39996 bits, expected"),
    ("over = 1000", "over = 1979-05-27", 15, "'over': found a date or time, expected a number"),
    ("over = 1000", 'equals = ["x"]', 15, "'equals': found a list of 1, expected a text, a number"),
    ("over = 1000", "present = 1", 15, "'present': found 1, expected true or false"),
    ("over = 1000", 'matches = ""', 15, "'matches': found '', expected a glob"),
    ('["KP", 7, true]', "[]", 16, "'one_of': found a list of 0, expected a list of one to 64"),
    ('["KP", 7, true]', "[1, nan]", 16, "'one_of': found nan, expected a list of one to 64"),
    ('from = "09:00"', 'from = "9:00"', 18, "'from': found '9:00', expected a time as '09:00'"),
    ('from = "09:00"', 'from = "17:00"', 18, "found from '17:00' to '17:00', expected a span"),
    ('from = "09:00"', 'from = "24:00"', 18, "found from '24:00' to '17:00', expected a span"),
    ('to = "17:00"', 'to = "24:01"', 18, "'to': found '24:01', expected a time as '17:00', or"),
    ('days = ["mon"]', 'days = ["monday"]', 18, "found 'monday', expected a list of 'mon',"),
    ('days = ["mon"]', 'zone = "Europe/Rome"', 18, "found the key 'zone', expected one of from,"),
    ('days = ["mon"]', "utc_offset_minutes = 841", 18, "found 841, expected whole minutes between"),
    ('{ from = "09:00", to = "17:00", days = ["mon"] }', "{}", 18, "found all week, expected a"),
    ('{ from = "09:00", to = "17:00", days = ["mon"] }', "9", 18, "found 9, expected a table as"),
    ("needed = 2", "needed = 0", 19, "'needed': found 0, expected a whole number from 1 to 16"),
    ("needed = 2", "needed = 17", 19, "'needed': found 17, expected a whole number from 1 to 16"),
    ('roles = ["finance"]', "roles = []", 20, "found a list of 0, expected a list of one to 16"),
    ("expires_minutes = 60", "expires_minutes = 1.5", 21, "found 1.5, expected a whole number"),
    ("needed = 2", "escalate_minutes = 9", 19, "'escalate_minutes' alone, expected 'escalate_to'"),
    ("needed = 2", 'escalate_to = ["x"]', 19, "'escalate_to' alone, expected 'escalate_minutes'"),
    (
        "needed = 2", 'escalate_to = ["x"]\nescalate_minutes = 60', 20,
        "'escalate_minutes': found 60, expected less than the 60 minutes after which nobody",
    ),
    ("needed = 2", 'escalate_to = []', 19, "found a list of 0, expected a list of one to 16"),
    ('verdict = "allow"', 'verdict = "allow"\nescalate_to = ["x"]', None, "where the verdict is"),
    ("[[rule]]", "[[rules]]", None, "found the key 'rules', expected one of version, name, rule"),
    ("needed = 2", "needed = = 2", 19, "expected TOML: Invalid value"),
    ("needed = 2", "needed = 2\nneeded = 3", 20, "expected TOML: Cannot overwrite a value"),
    ("needed = 2", f"needed = {'9' * 5000}", None, "expected TOML: Exceeds the limit"),
]  # fmt: skip


@pytest.mark.parametrize(("stands", "instead", "line", "said"), WRONG)
def test_what_is_wrong_is_named_with_its_line(
    stands: str, instead: str, line: int | None, said: str
) -> None:
    assert stands in SHOP
    found = refused(SHOP.replace(stands, instead))
    assert found.startswith("shop.toml:" + (f"{line}: " if line else "")), found
    assert said in found


def test_a_line_that_could_be_wrong_is_not_named() -> None:
    """Where what looks like a rule's head is none, only the rule is."""
    misleading = SHOP.replace('"a lot of money"', '"""\n[[rule]]\n"""').replace("= 2", "= 0")
    assert refused(misleading).startswith("shop.toml: rule 2 ('large'): 'needed': found 0")
    inline = 'version = 1\nname = "shop"\nrule = [{ id = "a", verdict = "perhaps" }]'
    assert refused(inline).startswith("shop.toml: rule 1 ('a'): 'verdict': found 'perhaps'")


def test_tables_of_their_own_are_found_too() -> None:
    first = '[[rule.arguments]]\npath = "cents"\nover = 1\n'
    second = first.replace("over = 1", 'over = "x"')
    text = SHOP.partition("arguments = [")[0] + first + second
    assert refused(text).startswith("shop.toml:18: rule 2 ('large'): 'over': found 'x'")


JSON = (b'"over"', b"1000", b"[", b"}", b'"path"', b'"KP"', b"{", b'"id"')


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "shop.json:1: expected JSON: Expecting value"),
        (b'{"version": 1,\n"name"}', "shop.json:2: expected JSON: Expecting ':'"),
        (b"[]", "shop.json: found a list of 0, expected a table with 'version' and 'rule'"),
        (b"3", "shop.json: found 3, expected a table with 'version' and 'rule'"),
        (b"\xff\xfe", "shop.json: expected JSON in UTF-8"),
        (b"[" * 100_000, "shop.json: expected JSON, and it is nested too deeply"),
        (b'{"version": 1, "version": 1}', "an object has 'version' twice, expected once"),
        (b'{"version": NaN}', "shop.json: found NaN, expected a number of JSON"),
        (b'{"version": 1, "name": "x", "rule": []}', "found a list of 0, expected one to 500"),
        (b'{"version": 1, "name": "x", "rule": [7]}', "rule 1: found 7, expected a table with"),
        (b'{"version": 1, "name": null, "rule": []}', "'name': found nothing, expected 1 to 64"),
        (
            b'{"version": 1, "name": "x", "rule": [\n{"id": "a", "verdict": "perhaps"}]}',
            "shop.json:2: rule 1 ('a'): 'verdict': found 'perhaps'",
        ),
        (
            b'{"version": 1, "name": "x", "rule": [{"id": "a", "verdict": "perhaps"}, {}]}',
            "shop.json: rule 1 ('a'): 'verdict': found 'perhaps'",
        ),
        (
            b'{"version":1,"name":"x","rule":[{"id":"a","verdict":"allow","reason":"\\ud800"}]}',
            "shop.json: expected texts in Unicode",
        ),
    ],
)  # fmt: skip
def test_json_that_is_wrong_is_refused(body: bytes, said: str) -> None:
    assert said in refused(body)


def test_half_of_a_pair_is_no_text() -> None:
    """In TOML it can only come from a program; a file with one cannot be decoded."""
    assert "shop.toml: expected texts in Unicode" in refused(SHOP.replace("KP", "\ud800"))


def test_toml_that_is_nested_too_deeply_is_refused() -> None:
    deep = "a = " + "[" * 100_000
    assert refused(deep) == "shop.toml: expected TOML, and it is nested too deeply"


PREDICATE = {"path": "cents", "over": 1}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([allow(str(n)) for n in range(limits.RULES_MAX + 1)], "expected one to 500 rules"),
        ([allow(tools=["x"] * (limits.GLOBS_PER_RULE_MAX + 1))], "expected a list of one to 64"),
        ([allow(tools=["x" * (limits.GLOB_CHARS_MAX + 1)])], "globs of 1 to 200 characters"),
        ([allow(arguments=[PREDICATE] * 17)], "expected a list of one to 16 predicates"),
        ([allow(arguments=[{"path": "x" * 201, "over": 1}])], "of at most 200 characters"),
        ([allow(arguments=[{"path": "x", "one_of": [1] * 65}])], "expected a list of one to 64"),
        ([allow(arguments=[{"path": "x", "equals": "y" * 1001}])], "expected a text, a number"),
        ([allow(reason="x" * 1001)], "expected a text of 1 to 1000 characters"),
    ],
)  # fmt: skip
def test_too_much_is_refused(rules: list[dict[str, object]], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        policy(*rules)


def test_a_policy_that_is_too_large_is_refused_unread() -> None:
    assert refused("#" * (limits.POLICY_BYTES_MAX + 1)) == (
        "shop.toml: it has 262145 bytes, and a policy at most 262144"
    )
    assert "a policy at most" in refused(b"[" * (limits.POLICY_BYTES_MAX + 1))


@given(st.data())
def test_whatever_stands_there_is_read_or_refused(data: st.DataObject) -> None:
    """A policy with some of its words replaced, in TOML and in JSON."""
    words = re.split(r"(\W)", SHOP)
    others = st.sampled_from([*words, "0x" + "f" * 9999, "1e999", "-", "\ud800", "\0", '"' * 3])
    for _ in range(data.draw(st.integers(1, 4))):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(others)
    with contextlib.suppress(InvalidInput):
        body = Policy.from_toml("".join(words), "shop.toml").body
        mended = body.replace(data.draw(st.sampled_from(JSON)), data.draw(st.binary()), 1)
        Policy.from_json(mended, "shop.json")


def test_as_much_as_is_allowed_is_taken() -> None:
    most = [allow(str(n), tools=["x"] * 2) for n in range(limits.RULES_MAX)]
    assert len(json.loads(policy(*most).body)["rule"]) == limits.RULES_MAX
