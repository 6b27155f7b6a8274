"""Policies and calls made up by a seeded generator; most of the calls fall near a rule."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.gate import Asked
from perdure.policy.policy import Policy
from perdure.policy.rules import DAYS, OPERATORS

WEEK_MS = 7 * 24 * 3600 * 1000
PATHS = ("a", "a.b", "c")
GLOBS = {
    "tenants": ("t1", "t*", "*"),
    "agents": ("a1", "a*"),
    "tools": ("pay", "pay*", "*a*", "mail", "*_out", "é *"),
    "capabilities": ("net.*", "net.http", "fs.*", "*", "tool:*"),
    "effects": ("read", "once"),
}
CONSTANTS = (1, 0, 2.5, 100, True, False, "x", "xy", 'q"\\*', "")
VALUES = (
    *(None, True, False, 0, 1, 1.0, 2, 2.5, 99.5, 100, 101, -3, 2**70),
    *("", "x", "xy", "yx", 'q"\\*', "1", [], ["x"], {}, {"b": 1}, {"b": "x"}, {"b": None}),
)
CAPABILITIES = ("net.http", "net.search", "fs.read", "tool:pay")


def made_up_policy(chance: Random, rules_max: int = 8) -> Policy:
    """Return a policy with a few rules about the same few things."""
    rules = [_rule(chance, number) for number in range(chance.randint(1, rules_max))]
    default = chance.choice(("declared", "deny"))
    document = {"version": 1, "name": "made-up", "default": default, "rule": rules}
    return Policy.from_json(json.dumps(document).encode())


def made_up_call(chance: Random) -> Asked:
    """Return a call of which the rules above may have something to say."""
    grants = tuple(chance.sample(("net.*", "fs.read", "tool:*"), chance.choice((0, 0, 1, 2))))
    agent = AgentSpec(chance.choice(("a1", "a2", "b")), model="m", grants=grants)
    tool = ToolSpec(
        chance.choice(("pay", "pay_out", "mail", "é t")),
        "",
        {},
        effect=chance.choice(("read", "once", "idempotent")),
        capabilities=tuple(chance.sample(CAPABILITIES, chance.choice((0, 1, 2)))),
    )
    arguments = {
        name: chance.choice(VALUES) for name in chance.sample(("a", "c"), chance.randint(0, 2))
    }
    tenant = chance.choice(("t1", "t2", "u"))
    return Asked(tenant, agent, tool, arguments, chance.randrange(3000 * WEEK_MS))


def _rule(chance: Random, number: int) -> dict[str, Any]:
    verdict = chance.choice(("allow", "allow", "ask", "ask", "deny"))
    rule: dict[str, Any] = {"id": f"r{number}", "verdict": verdict, "reason": "made up"}
    for key, globs in GLOBS.items():
        if chance.random() < 0.3:
            rule[key] = chance.sample(globs, chance.randint(1, 2))
    if chance.random() < 0.5:
        rule["arguments"] = [_predicate(chance) for _ in range(chance.randint(1, 2))]
    if chance.random() < 0.2:
        days = chance.sample(DAYS, 3)
        offset = chance.choice((0, 60, -300))
        start, end = chance.choice((("22:00", "06:00"), ("00:00", "12:30"), ("12:30", "24:00")))
        hours = {"from": start, "to": end, "days": days, "utc_offset_minutes": offset}
        rule["hours"] = hours
    if verdict == "ask" and chance.random() < 0.5:
        rule["needed"] = chance.randint(1, 3)
    return rule


def _predicate(chance: Random) -> dict[str, Any]:
    operator = chance.choice(OPERATORS)
    value: Any = chance.choice((0, 1, 2.5, 100))
    if operator == "equals":
        value = chance.choice(CONSTANTS)
    elif operator == "one_of":
        value = chance.sample(CONSTANTS, chance.randint(1, 3))
    elif operator == "matches":
        value = chance.choice(("x*", "*y", "x", "*", "*q*\\*"))
    elif operator == "present":
        value = chance.random() < 0.5
    return {"path": chance.choice(PATHS), operator: value}
