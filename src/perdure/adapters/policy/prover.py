"""Can an agent ever call a tool? A policy's rules as formulas for Z3, which finds a call or none.

A call is a tenant, a minute of the week, and for every path that rules look at a kind, the place of
a number (`regions.Scale`), a text and a flag. Agent and tool are given, so that what rules ask of
them is settled before. Any arguments count, also such as the tool's own schema would refuse.

Texts are hard, so they are tried in three ways. Of those that rules name, and examples of their
globs, a call is found at once if there is one. What globs have to do with each other is often all
that never needs. If neither settles it, all texts there are do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple, Protocol

import msgspec
import z3

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.errors import InvalidInput, LimitExceeded, PerdureError
from perdure.core.gate import Asked, Verdict
from perdure.policy.conditions import WEEK_MINUTES, glob, kind_of, windows
from perdure.policy.policy import Policy, Ruling
from perdure.policy.regions import Scale, constants, examples, in_that_week, predicates, scale
from perdure.policy.rules import Hours, Predicate, operator

SETTLED_MS_MAX = 30_000
_KINDS = ("nothing", "flag", "number", "text", "other")
_NOTHING, _OTHER = _KINDS.index("nothing"), _KINDS.index("other")
_ANY = z3.Star(z3.AllChar(z3.ReSort(z3.StringSort())))
_CHARACTER_MAX = 0x2FFFF
"""Those of Z3 end here."""
_SPELT = re.compile(r"\\u\{([0-9a-fA-F]+)\}")


class Way(msgspec.Struct, frozen=True):
    """A call that may be made, and the verdict on it."""

    asked: Asked
    verdict: Verdict


class _Argument(NamedTuple):
    kind: Any
    place: Any
    text: _Text
    flag: Any
    places: Scale


def find(policy: Policy, agent: AgentSpec, tool: ToolSpec) -> Way | None:
    """Return a call of a tool that an agent may make, if possible without asking; None if never.

    The call was judged by the policy itself before it is returned. Raises `LimitExceeded` when it
    is not settled in `SETTLED_MS_MAX` milliseconds.
    """
    listed, related, free = (
        _Question(policy, agent, tool, texts) for texts in (_Listed, _Related, _Free)
    )
    for effect in ("allow", "ask"):
        asked = listed.solve(effect)
        if asked is None and related.solve(effect) is not None:
            asked = free.solve(effect)
        if asked is None:
            continue
        verdict = policy.judge(asked)
        if verdict.effect != effect:
            raise PerdureError(
                f"the prover and the policy disagree on {asked}: expected {effect}, found "
                f"{verdict}. This is a bug; please report it with the policy"
            )
        return Way(asked, verdict)
    return None


class _Question:
    """The formulas of one tool in the hands of one agent."""

    def __init__(
        self, policy: Policy, agent: AgentSpec, tool: ToolSpec, texts: type[_Text]
    ) -> None:
        self.agent = agent
        self.tool = tool
        about = policy.subject("", agent, tool)
        concerned = [
            ruling
            for ruling in policy.rulings
            if all(holds(about) for key, holds in ruling.fixed.items() if key != "tenants")
        ]
        rules = [ruling.rule for ruling in concerned]
        tenants = tuple(one for rule in rules for one in rule.tenants)
        self.tenant = texts("tenant", ("default",), tenants)
        self.minute = z3.Int("minute")
        self.arguments = {
            path: _argument(path, asked, texts) for path, asked in predicates(rules).items()
        }
        holds = [(ruling, self._holds(ruling)) for ruling in concerned]
        by = {
            verdict: z3.Or([term for ruling, term in holds if ruling.rule.verdict == verdict])
            for verdict in ("deny", "ask")
        }
        covered = [
            z3.Or([term for ruling, term in holds if ruling.covers(need)])
            for need in policy.candidates("", agent, tool).ungranted
        ]
        possible = z3.And(*covered, z3.Not(by["deny"]), *self._whatever())
        self.formulas = {
            "allow": z3.And(possible, z3.Not(by["ask"])),
            "ask": z3.And(possible, by["ask"]),
        }

    def solve(self, effect: str) -> Asked | None:
        """Return a call that is allowed, or asked about; None if there is none."""
        solver = z3.Solver()
        solver.set("timeout", SETTLED_MS_MAX)
        solver.add(self.formulas[effect])
        answer = solver.check()
        if answer == z3.unknown:
            why = solver.reason_unknown()
            raise LimitExceeded(f"it could not be settled within {SETTLED_MS_MAX} ms: {why}")
        return self._call(solver.model()) if answer == z3.sat else None

    def _holds(self, ruling: Ruling) -> Any:
        rule = ruling.rule
        terms = [
            _on(self.arguments[one.path], one, against=rule.verdict != "allow")
            for one in rule.arguments
        ]
        if rule.hours:
            terms.append(_during(self.minute, rule.hours))
        if rule.tenants:
            terms.append(z3.Or([self.tenant.like(one) for one in rule.tenants]))
        return z3.And(terms)

    def _whatever(self) -> list[Any]:
        """Return what is true of every call: kinds are kinds, and inside of a text is nothing."""
        terms = [self.minute >= 0, self.minute < WEEK_MINUTES, *self.tenant.facts]
        terms.append(z3.Not(self.tenant.equals("")))
        for path, one in self.arguments.items():
            terms += one.text.facts
            places = [place for place in one.places.places if one.places.number(place) is not None]
            terms.append(z3.Or([one.kind == number for number in range(len(_KINDS))]))
            terms.append(z3.Or([one.place == place for place in places]))
            for other, outside in self.arguments.items():
                if path.startswith(f"{other}."):
                    terms.append(z3.Or(one.kind == _NOTHING, outside.kind == _OTHER))
        return terms

    def _call(self, model: Any) -> Asked:
        arguments: dict[str, Any] = {}
        for path in sorted(self.arguments):
            if (value := _valued(model, self.arguments[path])) is None:
                continue
            *above, last = path.split(".")
            inside = arguments
            for part in above:
                inside = inside.setdefault(part, {})
            inside[last] = value
        at = in_that_week(_whole(model, self.minute))
        return Asked(self.tenant.value(model), self.agent, self.tool, arguments, at)


class _Text(Protocol):
    """A text of a call, of which rules `named` some and match others by `globs`."""

    facts: list[Any]

    def __init__(self, name: str, named: tuple[str, ...], globs: tuple[str, ...]) -> None: ...

    def equals(self, text: str) -> Any:
        """Return the formula that it is this text."""
        ...

    def like(self, pattern: str) -> Any:
        """Return the formula that it matches a glob."""
        ...

    def value(self, model: Any) -> str:
        """Return the text that it is in a model."""
        ...


class _Listed:
    """One of those that are named, or an example of a glob."""

    def __init__(self, name: str, named: tuple[str, ...], globs: tuple[str, ...]) -> None:
        texts = (*named, *(one for each in globs for one in examples(each)), "other")
        self._texts = tuple(dict.fromkeys(texts))
        self._number = z3.Int(f"text of {name}")
        self.facts = [self._number >= 0, self._number < len(self._texts)]

    def equals(self, text: str) -> Any:
        return self._one_of(text.__eq__)

    def like(self, pattern: str) -> Any:
        return self._one_of(glob(pattern))

    def value(self, model: Any) -> str:
        return self._texts[_whole(model, self._number)]

    def _one_of(self, fits: Callable[[str], bool]) -> Any:
        return z3.Or([self._number == n for n, text in enumerate(self._texts) if fits(text)])


class _Related:
    """Nothing is known of it but what it matches. Never is never; a call may be none."""

    def __init__(self, name: str, named: tuple[str, ...], globs: tuple[str, ...]) -> None:
        self._name = name
        named, globs = tuple(dict.fromkeys(named)), tuple(dict.fromkeys(globs))
        self.facts = [z3.AtMost(*map(self.equals, named), 1)] if named else []
        for one, other in permutations(globs, 2):
            if _includes(one, other):
                self.facts.append(z3.Implies(self.like(other), self.like(one)))
            elif _apart(one, other):
                self.facts.append(z3.Not(z3.And(self.like(other), self.like(one))))
        for text in named:
            for one in globs:
                matched = self.like(one) == glob(one)(text)
                self.facts.append(z3.Implies(self.equals(text), matched))

    def equals(self, text: str) -> Any:
        return z3.Bool(f"{self._name} is {text}")

    def like(self, pattern: str) -> Any:
        return z3.Bool(f"{self._name} is like {pattern}")

    def value(self, model: Any) -> str:
        return "some text"


class _Free:
    """Any text at all."""

    def __init__(self, name: str, named: tuple[str, ...], globs: tuple[str, ...]) -> None:
        self._text = z3.String(f"text of {name}")
        self.facts: list[Any] = []

    def equals(self, text: str) -> Any:
        return self._text == _spelt(text)

    def like(self, pattern: str) -> Any:
        return z3.InRe(self._text, _regex(pattern))

    def value(self, model: Any) -> str:
        spelt = model.eval(self._text, model_completion=True).as_string()
        return _SPELT.sub(lambda found: chr(int(found[1], 16)), spelt)


def _includes(outer: str, inner: str) -> bool:
    """Say whether one glob matches all that another matches.

    It does if it matches the other with a character for each star that only a star can match.
    """
    return "\0" not in outer + inner and glob(outer)(inner.replace("*", "\0"))


def _apart(one: str, other: str) -> bool:
    """Say whether two globs begin or end in ways that exclude each other; no is no proof."""
    begins = zip(one.partition("*")[0], other.partition("*")[0], strict=False)
    ends = zip(one.rpartition("*")[2][::-1], other.rpartition("*")[2][::-1], strict=False)
    return any(a != b for pairs in (begins, ends) for a, b in pairs)


def _argument(path: str, asked: tuple[Predicate, ...], texts: type[_Text]) -> _Argument:
    named = tuple(one for one in constants(asked) if isinstance(one, str))
    globs = tuple(one.matches for one in asked if one.matches)
    return _Argument(
        z3.Int(f"kind of {path}"),
        z3.Int(f"place of {path}"),
        texts(path, named, globs),
        z3.Bool(f"flag of {path}"),
        scale(asked),
    )


def _on(argument: _Argument, predicate: Predicate, *, against: bool) -> Any:
    """Return a predicate; what it cannot judge holds if it is `against` the call."""
    name = operator(predicate)
    wanted = getattr(predicate, name)
    if name == "present":
        return (argument.kind != _NOTHING) == wanted
    if name == "matches":
        tests = {"text": [argument.text.like(wanted)]}
    elif name in ("equals", "one_of"):
        tests = {}
        for one in wanted if name == "one_of" else (wanted,):
            tests.setdefault(kind_of(one), []).append(_equal(argument, one))
    else:
        place = argument.places.place(wanted)
        compared = {
            "over": argument.place > place,
            "at_least": argument.place >= place,
            "under": argument.place < place,
            "at_most": argument.place <= place,
        }
        tests = {"number": [compared[name]]}
    kinds = [argument.kind == _KINDS.index(kind) for kind in tests]
    found = [z3.And(kind, z3.Or(each)) for kind, each in zip(kinds, tests.values(), strict=True)]
    return z3.Or(*found, z3.Not(z3.Or(kinds))) if against else z3.Or(found)


def _equal(argument: _Argument, constant: Any) -> Any:
    kind = kind_of(constant)
    if kind == "number":
        return argument.place == argument.places.place(constant)
    return argument.text.equals(constant) if kind == "text" else argument.flag == constant


def _during(minute: Any, hours: Hours) -> Any:
    return z3.Or([z3.And(minute >= start, minute < end) for start, end in windows(hours)])


def _regex(pattern: str) -> Any:
    first, *others = (z3.Re(_spelt(part)) for part in pattern.split("*"))
    for part in others:
        first = z3.Concat(first, _ANY, part)
    return first


def _spelt(text: str) -> Any:
    """Return a text for Z3; what could mean something in it is spelt by number."""
    if any(ord(one) > _CHARACTER_MAX for one in text):
        raise InvalidInput(
            f"nothing can be proved about {text!r}: it has characters of private use"
        )
    plain = (one if one.isascii() and one.isalnum() else f"\\u{{{ord(one):x}}}" for one in text)
    return z3.StringVal("".join(plain))


def _valued(model: Any, argument: _Argument) -> Any:
    """Return the value that a model gives an argument; None for nothing."""
    kind = _KINDS[_whole(model, argument.kind)]
    if kind == "number":
        return argument.places.number(_whole(model, argument.place))
    if kind == "text":
        return argument.text.value(model)
    if kind == "flag":
        return z3.is_true(model.eval(argument.flag, model_completion=True))
    return {} if kind == "other" else None


def _whole(model: Any, term: Any) -> int:
    return int(model.eval(term, model_completion=True).as_long())
