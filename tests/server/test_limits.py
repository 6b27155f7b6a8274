"""What one tenant may take, and that it takes nothing from another."""

from __future__ import annotations

import pytest

from perdure.server import limits
from perdure.server.limits import RequestLimit, SocketLimit, TenantLimits

TEN_A_SECOND = TenantLimits(requests_per_second=10, requests_at_once=5)
NOW = 1_000_000


def admitted(limit: RequestLimit, now_ms: int, requests: int, tenant: str = "ours") -> int:
    """Return how many of so many requests at one moment may go on."""
    return [limit.wait_ms(tenant, now_ms) for _ in range(requests)].count(0)


class TestRequests:
    """Requests per second."""

    @pytest.mark.parametrize(
        ("after_ms", "more"),
        [(0, 0), (99, 0), (100, 1), (199, 1), (250, 2), (499, 4), (500, 5), (10**9, 5)],
    )
    def test_so_many_at_once_and_then_so_many_a_second(self, after_ms: int, more: int) -> None:
        limit = RequestLimit(lambda tenant: TEN_A_SECOND)
        assert admitted(limit, NOW, 9) == 5
        assert admitted(limit, NOW + after_ms, 9) == more

    def test_whoever_comes_back_when_told_to_is_let_in(self) -> None:
        limit, now = RequestLimit(lambda tenant: TEN_A_SECOND), NOW
        admitted(limit, now, 5)
        for _ in range(20):
            wait_ms = limit.wait_ms("ours", now)
            assert 0 < wait_ms <= 100
            assert limit.wait_ms("ours", now + wait_ms - 1) > 0
            now += wait_ms
            assert limit.wait_ms("ours", now) == 0

    @pytest.mark.parametrize("per_second", [0.5, 7, 2_500])
    def test_in_the_long_run_it_is_the_rate(self, per_second: float) -> None:
        many = TenantLimits(requests_per_second=per_second, requests_at_once=20)
        limit = RequestLimit(lambda tenant: many)
        passed = sum(admitted(limit, NOW + ms, 4) for ms in range(20_000))
        assert passed == pytest.approx(20 * per_second + 20, rel=0.01, abs=1)

    def test_a_noisy_tenant_takes_nothing_from_a_quiet_one(self) -> None:
        limit = RequestLimit(lambda tenant: TEN_A_SECOND)
        for ms in range(1_000):
            admitted(limit, NOW + ms, 3, tenant="noisy")
        assert admitted(limit, NOW + 1_000, 5, tenant="quiet") == 5

    def test_each_tenant_has_limits_of_its_own(self) -> None:
        limit = RequestLimit(lambda tenant: TenantLimits(requests_at_once=int(tenant)))
        assert [admitted(limit, NOW, 9, tenant=tenant) for tenant in ("2", "7")] == [2, 7]

    def test_tenants_that_owe_no_wait_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "TENANTS_FORGOTTEN_FROM", 10)
        limit = RequestLimit(lambda tenant: TEN_A_SECOND)
        for number in range(100):
            limit.wait_ms(str(number), NOW + number * 100)
        assert admitted(limit, NOW + 9_900, 9, tenant="99") == 4
        assert len(limit._full_at_us) <= 11


class TestSockets:
    """Open sockets."""

    def test_one_more_than_allowed_is_refused_until_one_is_closed(self) -> None:
        sockets = SocketLimit(lambda tenant: 2)
        assert [sockets.open("ours") for _ in range(3)] == [True, True, False]
        assert sockets.open("theirs")
        sockets.close("ours")
        assert [sockets.open("ours") for _ in range(2)] == [True, False]
        assert (sockets.count("ours"), sockets.count("theirs"), sockets.count("x")) == (2, 1, 0)

    def test_what_is_closed_leaves_nothing(self) -> None:
        sockets = SocketLimit(lambda tenant: 2)
        for _ in range(3):
            assert sockets.open("ours")
            sockets.close("ours")
        assert sockets.count("ours") == 0
        assert not sockets._open
