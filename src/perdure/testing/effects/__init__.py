"""Does a tool keep what it declares? Kill its process around the call, and count what was done.

    from perdure.testing.effects import check_effects

    def test_refund_is_once():
        check_effects(refund, arguments={"order": "42"}, far_end=payments).check()

With pytest there is also the fixture `effects`: see `perdure.testing.pytest_plugin`.
"""

from perdure.testing.effects.check import check_effects
from perdure.testing.effects.report import Effects, Place, Violation

__all__ = ["Effects", "Place", "Violation", "check_effects"]
