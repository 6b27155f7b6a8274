"""A policy out of TOML or JSON: all of it is right, or an error says where it is not.

An error names the file, the line, what was found and what was expected. Lines are found by a look
at the text; where that could be wrong, only the rule is named.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgspec

from perdure.core.errors import InvalidInput
from perdure.core.gate import APPROVAL_MS
from perdure.core.limits import clip
from perdure.policy.limits import NUMBER_ABS_MAX, POLICY_BYTES_MAX
from perdure.policy.rules import EXPECTED, OPERATORS, Document, Hours, Predicate, Rule, operator

Path = tuple[str | int, ...]
"""Where something stands: ("rule", 2, "tools", 0)."""

RESERVED = frozenset(
    {
        "declared",
        "gate_failed",
        "granted",
        "not_granted",
        "too_many_unresolved_calls",
        "unresolved_call",
    }
)
"""Verdicts without a rule have these names; a rule that bore one could pass for it."""

FOUND_CHARS_MAX = 60
_ASK_ONLY = ("needed", "roles", "expires_minutes", "escalate_minutes", "escalate_to")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_AT_LINE = re.compile(r"at line (\d+)")
_HEADER = re.compile(r"^\s*\[\[\s*\"?rule\"?\s*\]\]")
_ID = re.compile(r'"id"\s*:')


class _Wrong(Exception):
    def __init__(self, path: Path, said: str) -> None:
        self.path = path
        self.said = said


def read_toml(text: str, where: str) -> Document:
    """Return the policy in a TOML text; `where` is what errors call it. Raises `InvalidInput`."""
    _check_size(len(text.encode(errors="replace")), where)
    try:
        value = tomllib.loads(text)
    except ValueError as error:
        line = _AT_LINE.search(str(error))
        at = f"{where}:{line[1]}" if line else where
        raise InvalidInput(f"{at}: expected TOML: {error}") from None
    except RecursionError:
        raise InvalidInput(f"{where}: expected TOML, and it is nested too deeply") from None
    return _document(value, where, lambda path: _line_of_toml(text, value, path))


def read_json(body: bytes, where: str) -> Document:
    """Return the policy in a JSON text; `where` is what errors call it. Raises `InvalidInput`."""
    _check_size(len(body), where)
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{where}:{error.lineno}: expected JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: expected JSON in UTF-8: {error}") from None
    except ValueError as error:
        raise InvalidInput(f"{where}: {error}") from None
    except RecursionError:
        raise InvalidInput(f"{where}: expected JSON, and it is nested too deeply") from None
    return _document(value, where, lambda path: _line_of_json(text, value, path))


def read_predicates(value: list[Any], where: str) -> tuple[Predicate, ...]:
    """Return predicates on arguments, as a rule has them. Raises `InvalidInput`."""
    rule = {"id": "rule", "verdict": "allow", "arguments": value}
    try:
        document = _converted({"version": 1, "name": "rule", "rule": [rule]})
        _check(document)
        msgspec.json.encode(document)
    except _Wrong as wrong:
        raise InvalidInput(f"{where}: {wrong.said}") from None
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{where}: expected texts in Unicode: {error}") from None
    return document.rule[0].arguments


def _check_size(size_bytes: int, where: str) -> None:
    if size_bytes > POLICY_BYTES_MAX:
        raise InvalidInput(
            f"{where}: it has {size_bytes} bytes, and a policy at most {POLICY_BYTES_MAX}"
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {clip(twice, FOUND_CHARS_MAX)!r} twice, expected once")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"found {text}, expected a number of JSON")


def _document(value: Any, where: str, line_of: Callable[[Path], int | None]) -> Document:
    try:
        document = _converted(value)
        _check(document)
        msgspec.json.encode(document)  # half of a surrogate pair shows only here
    except _Wrong as wrong:
        line = line_of(wrong.path)
        at = f"{where}:{line}" if line else where
        raise InvalidInput(f"{at}: {_rule_of(value, wrong.path)}{wrong.said}") from None
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{where}: expected texts in Unicode: {error}") from None
    return document


def _rule_of(value: Any, path: Path) -> str:
    """Return which rule a path leads into: its number and, if it can be had, its id."""
    if len(path) < 2 or not isinstance(path[1], int):
        return ""
    named = _at(value, (*path[:2], "id"))
    name = f" ({shown(named)})" if isinstance(named, str) else ""
    return f"rule {path[1] + 1}{name}: "


def _converted(value: Any) -> Document:
    try:
        return msgspec.convert(value, Document)
    except msgspec.ValidationError as error:
        said, _, at = str(error).partition(" - at `")
        path: Path = tuple(name or int(number) for name, number in _STEP.findall(at))
        if unknown := re.search(r"unknown field `(.*)`", said, re.DOTALL):
            known = ", ".join(_names(path))
            name = clip(unknown[1], FOUND_CHARS_MAX)
            raise _Wrong(
                (*path, name), f"found the key {name!r}, expected one of {known}"
            ) from None
        if missing := re.search(r"missing required field `(\w+)`", said):
            name = missing[1]
            raise _Wrong(path, f"found no {name!r}, expected {EXPECTED[name]}") from None
        key = next((str(step) for step in reversed(path) if isinstance(step, str)), "")
        if not key or path == ("rule",) or path[-2:-1] == ("rule",):
            raise _Wrong(
                path, f"found {shown(_at(value, path))}, expected {_table(path)}"
            ) from None
        found = shown(_at(value, path))
        raise _Wrong(path, f"{key!r}: found {found}, expected {EXPECTED[key]}") from None


def _table(path: Path) -> str:
    if path == ("rule",):
        return EXPECTED["rule"]
    return "a table with 'id' and 'verdict'" if path else "a table with 'version' and 'rule'"


def _names(path: Path) -> Iterable[str]:
    """Return the keys that the table at a path may have."""
    kinds: dict[str, type[msgspec.Struct]] = {
        "rule": Rule,
        "arguments": Predicate,
        "hours": Hours,
    }
    inside = next((str(step) for step in reversed(path) if isinstance(step, str)), "")
    return kinds.get(inside, Document).__struct_encode_fields__


def _at(value: Any, path: Path) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def shown(value: Any) -> str:
    """Return a value as an error shows it: short, and told from a text that looks like it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > NUMBER_ABS_MAX**2:
        text = f"a number of {value.bit_length()} bits"  # Python does not print the largest
    elif isinstance(value, str | int | float):
        text = repr(value)
    elif isinstance(value, dict | list):
        text = f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    else:
        text = "a date or time"
    return clip(text, FOUND_CHARS_MAX)


# --------------------------------------------------------- what no type of a single key can forbid


def _check(document: Document) -> None:
    numbers: dict[str, int] = {}
    for index, rule in enumerate(document.rule):
        here: Path = ("rule", index)
        if rule.id in RESERVED:
            said = f"'id': found {rule.id!r}, which stands for a verdict without a rule, expected"
            raise _Wrong((*here, "id"), f"{said} another")
        if rule.id in numbers:
            said = f"'id': found {rule.id!r}, which rule {numbers[rule.id]} has already, expected"
            raise _Wrong((*here, "id"), f"{said} one of its own")
        numbers[rule.id] = index + 1
        if rule.verdict != "allow" and not rule.reason:
            told = "the model is told it" if rule.verdict == "deny" else "people are shown it"
            raise _Wrong(here, f"found no 'reason', expected {EXPECTED['reason']}: {told}")
        for name in _ASK_ONLY:
            if rule.verdict != "ask" and getattr(rule, name) is not None:
                said = f"found {name!r} in a rule that says {rule.verdict!r}, expected it only"
                raise _Wrong((*here, name), f"{said} where the verdict is 'ask'")
        _check_escalation(rule, here)
        for number, predicate in enumerate(rule.arguments):
            _check_predicate(predicate, (*here, "arguments", number))
        if rule.hours is not None:
            _check_hours(rule.hours, (*here, "hours"))


def _check_escalation(rule: Rule, here: Path) -> None:
    minutes, roles = rule.escalate_minutes, rule.escalate_to
    if (minutes is None) != (roles is None):
        name, other = "escalate_minutes", "escalate_to"
        if minutes is None:
            name, other = other, name
        raise _Wrong((*here, name), f"found {name!r} alone, expected {other!r} as well")
    expires = rule.expires_minutes or APPROVAL_MS // 60_000
    if minutes is not None and minutes >= expires:
        said = f"'escalate_minutes': found {minutes}, expected less than the {expires} minutes"
        raise _Wrong((*here, "escalate_minutes"), f"{said} after which nobody can approve it")


def _check_predicate(predicate: Predicate, here: Path) -> None:
    if not all(predicate.path.split(".")):
        found = f"'path': found {predicate.path!r}, expected {EXPECTED['path']}"
        raise _Wrong((*here, "path"), found)
    used = [name for name in OPERATORS if getattr(predicate, name) is not None]
    if len(used) != 1:
        found = " and ".join(map(repr, used)) or "none"
        expected = f"expected exactly one of {', '.join(OPERATORS)}"
        raise _Wrong(here, f"the predicate on {predicate.path!r}: found {found}, {expected}")
    name = operator(predicate)
    value = getattr(predicate, name)
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, float) and not math.isfinite(one):
            raise _Wrong((*here, name), f"{name!r}: found {one}, expected {EXPECTED[name]}")


def _check_hours(hours: Hours, here: Path) -> None:
    if hours.start in (hours.end, "24:00"):
        said = f"'hours': found from {hours.start!r} to {hours.end!r}, expected a span of time"
        raise _Wrong(here, f"{said} (leave both out for the whole day)")
    if hours == Hours(utc_offset_minutes=hours.utc_offset_minutes):
        raise _Wrong(here, "'hours': found all week, expected a part of it, or no 'hours'")


# ------------------------------------------------------------------------------------------- lines


def _line_of_toml(text: str, value: Any, path: Path) -> int | None:
    """Return the line of the key that a path leads to, or of the nearest thing around it.

    A predicate is where its `path` is.
    """
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    if len(path) < 2 or not isinstance(path[1], int):
        head = range(starts[0] if starts else len(lines))
        found = _lines_with(lines, head, str(path[0]) if path else "")
        return found[0] + 1 if found else None
    rules = value.get("rule")
    if not isinstance(rules, list) or len(rules) != len(starts):
        return None
    nearest, end = starts[path[1]], [*starts[1:], len(lines)][path[1]]
    for step in path[2:]:
        inside = range(nearest, end)
        if isinstance(step, int):
            found = _lines_with(lines, inside, "path")
            predicates = rules[path[1]].get("arguments")
            known = "arguments" in path and len(found) == len(predicates)
            return (found[step] if known else nearest) + 1
        found = _lines_with(lines, inside, step)
        nearest = found[0] if found else nearest
    return nearest + 1


def _lines_with(lines: list[str], numbers: range, key: str) -> list[int]:
    """Return those of some lines on which a key stands, each as often as it does."""
    is_key = re.compile(rf"(?:^|[\s,{{.\[])\"?{re.escape(key)}\"?\s*[=.\]]")
    return [number for number in numbers for _ in is_key.findall(lines[number]) if key]


def _line_of_json(text: str, value: Any, path: Path) -> int | None:
    """Return the line on which a rule has its id, if each has one and nothing else does."""
    places = [found.start() for found in _ID.finditer(text)]
    rules = value.get("rule") if isinstance(value, dict) else None
    if len(path) < 2 or not isinstance(path[1], int) or not isinstance(rules, list):
        return None
    return text.count("\n", 0, places[path[1]]) + 1 if len(places) == len(rules) else None
