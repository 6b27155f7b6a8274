"""Can an agent ever call a tool? A policy's rules as formulas for Z3, which finds a call or none.

A call is a tenant, a minute of the week, and for every path that rules look at a kind, the place of
a number (`regions.Scale`), a text and a flag. Agent and tool are given, so that what rules ask of
them is settled before. Any arguments count, also such as the tool's own schema would refuse.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
import z3

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.errors import InvalidInput, LimitExceeded, PerdureError
from perdure.core.gate import Asked, Verdict
from perdure.policy.conditions import WEEK_MINUTES, kind_of, windows
from perdure.policy.policy import Policy, Ruling
from perdure.policy.regions import Scale, in_that_week, predicates, scale
from perdure.policy.rules import Hours, Predicate, operator

SECONDS_MAX = 30
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
    text: Any
    flag: Any
    places: Scale


def find(policy: Policy, agent: AgentSpec, tool: ToolSpec) -> Way | None:
    """Return a call of a tool that an agent may make, if possible without asking; None if never.

    The call was judged by the policy itself before it is returned. Raises `LimitExceeded` when it
    is not settled in `SECONDS_MAX` seconds.
    """
    question = _Question(policy, agent, tool)
    for effect, formula in (("allow", question.unasked), ("ask", question.asked)):
        asked = question.solve(formula)
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

    def __init__(self, policy: Policy, agent: AgentSpec, tool: ToolSpec) -> None:
        self.agent = agent
        self.tool = tool
        about = policy.subject("", agent, tool)
        concerned = [
            ruling
            for ruling in policy.rulings
            if all(holds(about) for key, holds in ruling.fixed.items() if key != "tenants")
        ]
        rules = [ruling.rule for ruling in concerned]
        self.tenant = z3.String("tenant") if any(rule.tenants for rule in rules) else None
        self.minute = z3.Int("minute")
        self.arguments = {
            path: _argument(path, scale(asked)) for path, asked in predicates(rules).items()
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
        self.unasked = z3.And(possible, z3.Not(by["ask"]))
        self.asked = z3.And(possible, by["ask"])

    def solve(self, formula: Any) -> Asked | None:
        """Return a call of which a formula is true, or None."""
        solver = z3.Solver()
        solver.set("timeout", SECONDS_MAX * 1000)
        solver.add(formula)
        answer = solver.check()
        if answer == z3.unknown:
            why = solver.reason_unknown()
            raise LimitExceeded(f"it could not be settled within {SECONDS_MAX} seconds: {why}")
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
            terms.append(z3.Or([z3.InRe(self.tenant, _regex(one)) for one in rule.tenants]))
        return z3.And(terms)

    def _whatever(self) -> list[Any]:
        """Return what is true of every call: kinds are kinds, and inside of a text is nothing."""
        terms = [self.minute >= 0, self.minute < WEEK_MINUTES]
        if self.tenant is not None:
            terms.append(z3.Length(self.tenant) > 0)
        for path, one in self.arguments.items():
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
        tenant = "default" if self.tenant is None else _text(model, self.tenant)
        at = in_that_week(_whole(model, self.minute))
        return Asked(tenant, self.agent, self.tool, arguments, at)


def _argument(path: str, places: Scale) -> _Argument:
    return _Argument(
        z3.Int(f"kind of {path}"),
        z3.Int(f"place of {path}"),
        z3.String(f"text of {path}"),
        z3.Bool(f"flag of {path}"),
        places,
    )


def _on(argument: _Argument, predicate: Predicate, *, against: bool) -> Any:
    """Return a predicate; what it cannot judge holds if it is `against` the call."""
    name = operator(predicate)
    wanted = getattr(predicate, name)
    if name == "present":
        return (argument.kind != _NOTHING) == wanted
    if name == "matches":
        tests = {"text": [z3.InRe(argument.text, _regex(wanted))]}
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
    return argument.text == _spelt(constant) if kind == "text" else argument.flag == constant


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
        return _text(model, argument.text)
    if kind == "flag":
        return z3.is_true(model.eval(argument.flag, model_completion=True))
    return {} if kind == "other" else None


def _whole(model: Any, term: Any) -> int:
    return int(model.eval(term, model_completion=True).as_long())


def _text(model: Any, term: Any) -> str:
    spelt = model.eval(term, model_completion=True).as_string()
    return _SPELT.sub(lambda found: chr(int(found[1], 16)), spelt)
