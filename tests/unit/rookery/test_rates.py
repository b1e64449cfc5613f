"""How often a principal may ask."""

from __future__ import annotations

from rookery.web import rates
from rookery.web.rates import Rates


def test_a_minutes_worth_at_once_and_then_as_time_passes_each_principal_for_itself() -> None:
    time = [0.0]
    allowed = Rates(60, now=lambda: time[0])
    assert [allowed.wait_for("a") for _ in range(60)] == [0] * 60
    assert allowed.wait_for("a") == 1
    assert allowed.wait_for("b") == 0
    time[0] += 2
    assert [allowed.wait_for("a") for _ in range(3)] == [0, 0, 1]
    time[0] += 3600
    assert [allowed.wait_for("a") for _ in range(61)] == [0] * 60 + [1]
    assert Rates(1, now=lambda: time[0]).wait_for("a") == 0
    assert Rates(None).wait_for("a") == 0


def test_the_one_quiet_for_longest_is_forgotten_first() -> None:
    allowed = Rates(1, now=lambda: 0.0)
    for number in range(rates.MAX_PRINCIPALS + 5):
        allowed.wait_for(str(number))
    assert len(allowed._buckets) == rates.MAX_PRINCIPALS
    assert "0" not in allowed._buckets
