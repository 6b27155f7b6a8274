"""What every adapter of a port promises, as suites that any driver can run."""

import pytest

pytest.register_assert_rewrite(
    f"{__name__}.accepting",
    f"{__name__}.catalogs",
    f"{__name__}.claimant",
    f"{__name__}.claiming",
    f"{__name__}.clusters",
    f"{__name__}.committing",
    f"{__name__}.listing",
    f"{__name__}.loading",
    f"{__name__}.machine",
    f"{__name__}.waking",
)
