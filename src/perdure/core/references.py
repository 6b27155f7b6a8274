"""References to credentials: where a secret is to be found, never what it is.

`env:STRIPE_KEY` is a variable of the worker's environment, `file:/run/secrets/stripe` a file on its
disk; `vault:team/stripe#key` is whatever the provider for `vault` takes it for. A definition holds
references alone, so whoever reads it learns nothing. An error here never repeats what it was given:
somebody may have put the secret itself.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from perdure.core.errors import InvalidInput

MODEL = "model"
"""The name under which an agent's credentials have the key of its model's provider."""

REFERENCE_CHARS_MAX = 512
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

_REFERENCE = re.compile(r"[a-z][a-z0-9]{1,15}:[^\s\x00-\x1f\x7f]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_KEY_SHAPES = re.compile(
    r"""
      \b(?: sk | pk | rk | ak ) [-_] [A-Za-z0-9_-]{8,}              # OpenAI, Anthropic, Stripe
    | \b(?: gh[opsur] | github_pat | glpat | hf | npm | dop_v1 | nrn[a-z]* | whsec | xai | gsk )
      [-_] [A-Za-z0-9_-]{8,}
    | \b(?: AKIA | ASIA ) [A-Z0-9]{12,} | \b AIza [A-Za-z0-9_-]{20,} # AWS, Google
    | \b xox [a-z] - [A-Za-z0-9-]{8,}                                # Slack
    | \b eyJ [A-Za-z0-9_-]{10,} \. [A-Za-z0-9_-]{4,}                 # a JSON web token
    | -----BEGIN
    | :// [^/@\s]* : [^/@\s]+ @                                      # a password in a URL
    """,
    re.VERBOSE,
)
_RANDOM = re.compile(r"[A-Za-z0-9+_=-]{24,}")

_EXPECTED = (
    "expected a reference to it, as in 'env:STRIPE_KEY' or 'file:/run/secrets/stripe'; what was "
    "given is not repeated here, as it may be the secret itself"
)


def scheme_of(reference: str) -> str:
    """Return which provider a reference is for: what stands before its first colon."""
    return reference.partition(":")[0]


def check_credentials(credentials: Any, where: str) -> None:
    """Check names and references. Raises `InvalidInput`, which repeats no reference."""
    if not isinstance(credentials, dict):
        raise InvalidInput(f"{where}: credentials is a dict of names and references")
    for name, reference in credentials.items():
        if not is_name(name):
            raise InvalidInput(
                f"{where}: a name in credentials is 1 to 64 letters, digits, `_`, `.` and `-`, "
                "as in {'stripe': 'env:STRIPE_KEY'}"
            )
        problem = _problem(reference)
        if problem:
            raise InvalidInput(f"{where}: credentials[{name!r}] {problem}: {_EXPECTED}")


def is_name(name: Any) -> bool:
    """Say whether something can be the name of a credential."""
    return (
        isinstance(name, str)
        and NAME_PATTERN.fullmatch(name) is not None
        and not is_key_shaped(name)
    )


def is_key_shaped(text: str) -> bool:
    """Say whether a text looks like a secret: a known prefix, a password in a URL, randomness."""
    return bool(_KEY_SHAPES.search(text)) or any(map(_looks_random, _RANDOM.findall(text)))


def key_shaped(value: Any) -> bool:
    """Say whether a JSON value has a text in it that looks like a key of a known kind."""
    if isinstance(value, dict):
        return any(map(key_shaped, value.values()))
    if isinstance(value, list | tuple):
        return any(map(key_shaped, value))
    return isinstance(value, str) and _KEY_SHAPES.search(value) is not None


def _problem(reference: Any) -> str | None:
    if not isinstance(reference, str):
        return f"is a {type(reference).__name__}"
    if len(reference) > REFERENCE_CHARS_MAX:
        return f"has more than {REFERENCE_CHARS_MAX} characters"
    if not _REFERENCE.fullmatch(reference):
        return "is no reference"
    scheme, _, rest = reference.partition(":")
    if scheme == "env" and not _VARIABLE.fullmatch(rest):
        return "names no variable after `env:`"
    if scheme == "file" and not rest.startswith("/"):
        return "names no absolute path after `file:`"
    return "looks like a secret" if is_key_shaped(reference) else None


def _looks_random(text: str) -> bool:
    """Say whether letters of both cases and digits alternate as they do in no name or path."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text if c.isalnum()]
    changes = sum(a != b for a, b in pairwise(kinds))
    return len(set(kinds)) == 3 and changes * 4 >= len(kinds)
