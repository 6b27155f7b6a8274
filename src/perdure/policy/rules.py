"""What a policy may hold: its rules and their conditions, as they stand in TOML and JSON.

The names are those of the file. What a type does not allow, nothing after it looks at again.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from perdure.core.agent import Effect
from perdure.core.limits import APPROVERS_MAX, ROLES_MAX
from perdure.policy.limits import (
    CHOICES_PER_PREDICATE_MAX,
    EXPIRES_MINUTES_MAX,
    GLOB_CHARS_MAX,
    GLOBS_PER_RULE_MAX,
    NUMBER_ABS_MAX,
    OFFSET_MINUTES_MAX,
    PATH_CHARS_MAX,
    PREDICATES_PER_RULE_MAX,
    RULES_MAX,
    TEXT_CHARS_MAX,
)

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Glob = Annotated[str, Meta(min_length=1, max_length=GLOB_CHARS_MAX)]
Globs = Annotated[tuple[Glob, ...], Meta(min_length=1, max_length=GLOBS_PER_RULE_MAX)]
Text = Annotated[str, Meta(min_length=1, max_length=TEXT_CHARS_MAX)]
Whole = Annotated[int, Meta(ge=-NUMBER_ABS_MAX, le=NUMBER_ABS_MAX)]
Part = Annotated[float, Meta(ge=-NUMBER_ABS_MAX, le=NUMBER_ABS_MAX)]
Number = Whole | Part
Constant = Annotated[str, Meta(max_length=TEXT_CHARS_MAX)] | bool | Whole | Part
Clock = Annotated[str, Meta(pattern=r"\A(([01]\d|2[0-3]):[0-5]\d|24:00)\Z")]


class _Strict(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A table of a policy: what it does not know, it refuses."""


class Predicate(_Strict, frozen=True):
    """What one argument of a call has to be: a path, and exactly one of the others.

    `path` goes through objects, as in `order.cents`. `matches` is a glob. What is missing, is null
    or is of another kind cannot be judged; only `present` always can.
    """

    path: Annotated[str, Meta(min_length=1, max_length=PATH_CHARS_MAX)]
    equals: Constant | None = None
    one_of: (
        Annotated[tuple[Constant, ...], Meta(min_length=1, max_length=CHOICES_PER_PREDICATE_MAX)]
        | None
    ) = None
    over: Number | None = None
    at_least: Number | None = None
    under: Number | None = None
    at_most: Number | None = None
    matches: Glob | None = None
    present: bool | None = None


OPERATORS = tuple(name for name in Predicate.__struct_fields__ if name != "path")


class Hours(_Strict, frozen=True, rename={"start": "from", "end": "to"}):
    """When: from a minute of the day until just before another, on some days of the week.

    A window that ends before it starts goes on after midnight, and belongs to the day on which it
    started. The clock is that of UTC, `utc_offset_minutes` ahead.
    """

    start: Clock = "00:00"
    end: Clock = "24:00"
    days: Annotated[tuple[Day, ...], Meta(min_length=1)] = DAYS
    utc_offset_minutes: Annotated[int, Meta(ge=-OFFSET_MINUTES_MAX, le=OFFSET_MINUTES_MAX)] = 0


class Rule(_Strict, frozen=True):
    """A verdict, and the conditions that must all hold; one that is missing always holds.

    `needed` people with one of the `roles` have to approve what an ask rule asks about, before
    `expires_minutes` are over. After `escalate_minutes` those with a role of `escalate_to` have to.
    """

    id: Name
    verdict: Literal["allow", "ask", "deny"]
    reason: Text = ""
    tenants: Globs = ()
    agents: Globs = ()
    tools: Globs = ()
    capabilities: Globs = ()
    effects: Annotated[tuple[Effect, ...], Meta(min_length=1)] = ()
    arguments: Annotated[
        tuple[Predicate, ...], Meta(min_length=1, max_length=PREDICATES_PER_RULE_MAX)
    ] = ()
    hours: Hours | None = None
    needed: Annotated[int, Meta(ge=1, le=APPROVERS_MAX)] | None = None
    roles: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=ROLES_MAX)] | None = None
    expires_minutes: Annotated[int, Meta(ge=1, le=EXPIRES_MINUTES_MAX)] | None = None
    escalate_minutes: Annotated[int, Meta(ge=1, le=EXPIRES_MINUTES_MAX)] | None = None
    escalate_to: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=ROLES_MAX)] | None = None


class Document(_Strict, frozen=True):
    """A whole policy. `default` says what a tool needs that declares no capabilities.

    `declared`: nothing, an agent may call what its definition lists. `deny`: the capability
    `tool:NAME`.
    """

    version: Literal[1]
    name: Name
    rule: Annotated[tuple[Rule, ...], Meta(min_length=1, max_length=RULES_MAX)]
    default: Literal["declared", "deny"] = "declared"


def operator(predicate: Predicate) -> str:
    """Return which of its operators a predicate uses."""
    return next(name for name in OPERATORS if getattr(predicate, name) is not None)


EXPECTED = {
    "version": "1, the only version of the format",
    "name": "1 to 64 letters, digits, '.', '_' and '-', as 'shop'",
    "default": "'declared' or 'deny'",
    "rule": f"one to {RULES_MAX} rules, each under [[rule]]",
    "id": "1 to 64 letters, digits, '.', '_' and '-', as 'large-refunds'",
    "verdict": "'allow', 'ask' or 'deny'",
    "reason": f"a text of 1 to {TEXT_CHARS_MAX} characters",
    **dict.fromkeys(
        ("tenants", "agents", "tools", "capabilities"),
        f"a list of one to {GLOBS_PER_RULE_MAX} globs of 1 to {GLOB_CHARS_MAX} characters, as "
        "['mail_*'] (leave it out for all)",
    ),
    "effects": "a list of 'read', 'idempotent' and 'once' (leave it out for all)",
    "arguments": f"a list of one to {PREDICATES_PER_RULE_MAX} predicates, as "
    "[{ path = 'cents', over = 1000 }]",
    "path": f"names with dots between them, as 'order.cents', of at most {PATH_CHARS_MAX} "
    "characters",
    "equals": "a text, a number, true or false",
    "one_of": f"a list of one to {CHOICES_PER_PREDICATE_MAX} texts, numbers, true or false",
    **dict.fromkeys(
        ("over", "at_least", "under", "at_most"),
        f"a number between -{NUMBER_ABS_MAX} and {NUMBER_ABS_MAX}",
    ),
    "matches": f"a glob of 1 to {GLOB_CHARS_MAX} characters, as 'https://*' (never a regex)",
    "present": "true or false",
    "hours": "a table as { from = '09:00', to = '17:00', days = ['mon'] }",
    "from": "a time as '09:00'",
    "to": "a time as '17:00', or '24:00'",
    "days": "a list of 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' and 'sun'",
    "utc_offset_minutes": f"whole minutes between -{OFFSET_MINUTES_MAX} and {OFFSET_MINUTES_MAX}",
    "needed": f"a whole number from 1 to {APPROVERS_MAX}",
    "roles": f"a list of one to {ROLES_MAX} names of roles",
    **dict.fromkeys(
        ("expires_minutes", "escalate_minutes"), f"a whole number from 1 to {EXPIRES_MINUTES_MAX}"
    ),
    "escalate_to": f"a list of one to {ROLES_MAX} names of roles",
}
"""What a key has to be, in the words of an error."""
