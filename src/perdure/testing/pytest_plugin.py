"""The pytest plugin that comes with perdure: the fixture `effects`.

    @pytest.mark.effects(kills=50)
    def test_refund_is_once(effects):
        effects(refund, arguments={"order": "42"}, far_end=payments)

It does what `check_effects` does, fails the test if the tool is not what it declares, and shows the
table with a failed test. `--effects-kills` and `--effects-seed` hold for every such test: a nightly
run may kill more often. What is not said there is taken from the call, then from the marker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perdure.testing.effects import Effects


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer to say for a whole run how often is killed, and where."""
    group = parser.getgroup("perdure")
    group.addoption("--effects-kills", type=int, help="kills per tool that `effects` checks")
    group.addoption("--effects-seed", type=int, help="the seed that chooses where `effects` kills")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "effects(kills, seed): how often, and where, the fixture `effects` kills"
    )


@pytest.fixture
def effects(request: pytest.FixtureRequest) -> Callable[..., Effects]:
    """Check that a tool honours what it declares; takes what `check_effects` takes."""
    marker = request.node.get_closest_marker("effects")
    marked = dict(marker.kwargs) if marker is not None else {}
    wanted = {
        name: value
        for name in ("kills", "seed")
        if (value := request.config.getoption(f"--effects-{name}")) is not None
    }

    def check(tool: Any, **given: Any) -> Effects:
        # Imported by the tests that ask for it alone: every run of pytest loads this file.
        from perdure.testing.effects import check_effects

        found = check_effects(tool, **{**marked, **given, **wanted})
        found.check()
        return found

    return check
