"""Every limit of a policy, with its unit in its name."""

from __future__ import annotations

POLICY_BYTES_MAX = 256 * 1024
RULES_MAX = 500
GLOBS_PER_RULE_MAX = 64
"""Of tenants, agents, tools and capabilities, each."""
GLOB_CHARS_MAX = 200
PREDICATES_PER_RULE_MAX = 16
CHOICES_PER_PREDICATE_MAX = 64
PATH_CHARS_MAX = 200
TEXT_CHARS_MAX = 1_000
"""Of a reason, and of a constant in a predicate."""
NUMBER_ABS_MAX = 2**53
"""Up to here every reader of JSON takes a whole number for the same one."""
OFFSET_MINUTES_MAX = 14 * 60
EXPIRES_MINUTES_MAX = 366 * 24 * 60
CANDIDATES_MAX = 4_096
"""For so many (tenant, agent, tool) a policy remembers which rules may apply."""
