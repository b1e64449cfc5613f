"""What ``rookery costs`` draws."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from rookery.cost_tables import BAR_WIDTH, DAYS, costs_chart
from server.models import Cost
from server.views import CostGroup, CostReport

FULL = "█"


def drawn(*days: tuple[str, Any]) -> list[str] | None:
    """The lines of the chart of a report by day; None without one."""
    groups = tuple(CostGroup(key=key, cost=Cost(**cost)) for key, cost in days)
    report = CostReport(
        scope="principal",
        session_id=None,
        total=Cost(),
        cache_hit_rate=None,
        budget_usd=None,
        budget_remaining_usd=None,
        groups=groups,
        group_by="day",
    )
    chart = costs_chart(report)
    if chart is None:
        return None
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(chart)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def bar(line: str) -> int:
    """Whole cells of a line's bar."""
    return line.count(FULL)


def test_the_chart_has_a_bar_for_each_day_as_long_as_its_cost_and_shows_days_without_one() -> None:
    lines = drawn(("2026-11-24", {"usd": 1.0}), ("2026-11-26", {"usd": 4.0}), ("2026-11-27", {"usd": 2.0}))
    assert lines is not None
    assert [line.split()[0] for line in lines] == ["11-24", "11-25", "11-26", "11-27"]
    assert [bar(line) for line in lines] == [BAR_WIDTH // 4, 0, BAR_WIDTH, BAR_WIDTH // 2]
    assert [line.split()[-1] for line in lines] == ["$1.0000", "$0.0000", "$4.0000", "$2.0000"]


def test_the_chart_ends_with_the_newest_day_and_goes_back_two_weeks() -> None:
    lines = drawn(("2026-01-01", {"usd": 100.0}), ("2026-11-01", {"usd": 1.0}), ("2026-11-30", {"usd": 1.0}))
    assert lines is not None
    assert len(lines) == DAYS
    assert (lines[0].split()[0], lines[-1].split()[0]) == ("11-17", "11-30")
    # A day that is not shown does not set the scale.
    assert bar(lines[-1]) == BAR_WIDTH


def test_where_nothing_has_a_price_the_chart_is_in_tokens_of_all_kinds() -> None:
    kinds = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    lines = drawn(("2026-11-26", dict.fromkeys(kinds, 500)), ("2026-11-27", {"output_tokens": 1000}))
    assert lines is not None
    assert [line.split()[-2:] for line in lines] == [["2,000", "tokens"], ["1,000", "tokens"]]
    assert [bar(line) for line in lines] == [BAR_WIDTH, BAR_WIDTH // 2]


def test_days_without_any_cost_draw_empty_bars() -> None:
    lines = drawn(("2026-11-26", {}), ("2026-11-27", {}))
    assert lines is not None
    assert [bar(line) for line in lines] == [0, 0]


def test_there_is_no_chart_of_less_than_two_days() -> None:
    assert drawn() is None
    assert drawn(("2026-11-26", {"usd": 1.0})) is None
    assert drawn(("2026-11-26", {"usd": 1.0}), ("sandbox time", {"usd": 1.0})) is None
