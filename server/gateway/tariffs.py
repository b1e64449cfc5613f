"""A model's prices out of ``genai-prices``, as whole numbers that a request is priced with in microseconds.

The library works each price out from its tables anew, which would be a tenth of all that a request costs here. A
tariff asks it once an hour for each model, and holds what a token of each kind costs, for each band of input length
(long contexts are dearer). The sums are exact: a test compares them with the library's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from server.models import NANO_USD, Usage

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

PARTS: Final = 1_000_000
"""Rates are in millionths of a nano-dollar, the finest that tables in dollars for a million tokens can need."""

MAX_KEPT: Final = 512

_KINDS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "server_tool_requests",
)


@dataclass(frozen=True)
class Band:
    """What a token of each kind costs, in the order of the kinds, while the input is longer than ``above``."""

    above: int
    rates: tuple[int, ...]


@dataclass(frozen=True)
class Tariff:
    """The prices of one model.

    Args:
        entry: the table's name for it.
        bands: by input length, the shortest first.
    """

    entry: str
    bands: tuple[Band, ...]

    def nano_usd(self, usage: Usage) -> int:
        """What ``usage`` costs, rounded up."""
        rates = self._rates(usage)
        counts = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_tokens - usage.cache_write_1h_tokens,
            usage.cache_write_1h_tokens,
            usage.server_tool_requests,
        )
        return -(-sum(rate * count for rate, count in zip(rates, counts, strict=True)) // PARTS)

    def output_nano_usd(self, usage: Usage) -> int:
        """What a million output tokens cost beside the input in ``usage``, rounded up."""
        return self._rates(usage)[1]

    def _rates(self, usage: Usage) -> tuple[int, ...]:
        length = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        return next(band.rates for band in reversed(self.bands) if length > band.above or band.above == 0)


class Tariffs:
    """Tariffs by model and hour, for prices change at dates."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, datetime], Tariff | None] = {}

    def of(self, model: str, at: datetime) -> Tariff | None:
        """The tariff of a model; None when the table does not know it."""
        key = model, at.replace(minute=0, second=0, microsecond=0)
        if key not in self._known:
            if len(self._known) >= MAX_KEPT:
                self._known.clear()
            self._known[key] = _tariff(model, at)
        return self._known[key]


def calculation(model: str, usage: Usage, at: datetime) -> PriceCalculation | None:
    """The library's own answer; None when it does not know the model."""
    import genai_prices

    try:
        return genai_prices.calc_price(
            genai_prices.Usage(
                # The table counts all input together and takes the cached parts out again.
                input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                cache_write_1h_tokens=usage.cache_write_1h_tokens,
                output_tokens=usage.output_tokens,
                web_searches=usage.server_tool_requests,
            ),
            model,
            provider_id="anthropic",
            genai_request_timestamp=at,
        )
    except LookupError:
        return None


def _tariff(model: str, at: datetime) -> Tariff | None:
    found = calculation(model, Usage(), at)
    if found is None:
        return None
    thresholds = {
        int(tier.start)
        for price in vars(found.model_price).values()
        if (tiers := getattr(price, "tiers", None)) is not None
        for tier in tiers
    }
    return Tariff(found.model.id, tuple(_band(model, at, above) for above in sorted({0} | thresholds)))


def _band(model: str, at: datetime, above: int) -> Band:
    """The band that begins above so many tokens of input: each kind's price is what one token more of it adds."""
    long = Usage(input_tokens=above + 1 if above else 0)
    rates: list[int] = []
    for kind in _KINDS:
        more: dict[str, Any] = {kind: getattr(long, kind) + 1}
        if kind == "cache_write_1h_tokens":
            more["cache_write_tokens"] = 1
        rates.append(_parts(_total(model, long.model_copy(update=more), at) - _total(model, long, at)))
    return Band(above, tuple(rates))


def _total(model: str, usage: Usage, at: datetime) -> Decimal:
    found = calculation(model, usage, at)
    assert found is not None
    return found.total_price


def _parts(usd: Decimal) -> int:
    """Dollars in millionths of a nano-dollar, rounded up should a table be finer."""
    return -int(-(usd * NANO_USD * PARTS) // 1)
