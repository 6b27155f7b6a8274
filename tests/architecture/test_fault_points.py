"""Every fault point is known by name: a proof counts those that it has reached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from perdure.ports.faults import SITES

SOURCE: Final = Path(__file__).parents[2] / "src" / "perdure"


def test_the_points_in_the_code_are_those_that_are_listed() -> None:
    """One that is not listed is reached by no survey; `user.` ones are those of a test's tools."""
    reached = {
        site
        for path in SOURCE.rglob("*.py")
        for site in re.findall(r'reach\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    }
    assert {site for site in reached if not site.startswith("user.")} == set(SITES)
