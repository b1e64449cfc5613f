"""What model requests cost, in whole nano-dollars, from the price tables of ``genai-prices``.

The tables come with the library and are never updated over the network behind the operator's back. The library is
imported at first use: it takes a quarter of a second, mostly pydantic models (measured on a 2-core machine).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final

from server.errors import ErrorCode, RookeryError
from server.gateway.tariffs import Tariffs, calculation
from server.models import NANO_USD, Usage

if TYPE_CHECKING:
    from server.settings import Settings

MILLION: Final = 1_000_000

_VARIANT: Final = re.compile(r"\[[^\]]*\]$")
"""What the CLI appends to a model's name for itself, as in ``claude-sonnet-5[1m]``."""


@dataclass(frozen=True)
class Price:
    """What some usage costs."""

    nano_usd: int
    """Rounded up to the next nano-dollar."""
    source: str
    """Where the price comes from: the table with its version, and the entry."""


@dataclass(frozen=True)
class FixedPrice:
    """A price that the operator sets for a model, in dollars for a million tokens.

    Cache reads default to the price of input, cache writes to twice that: the high side.
    """

    input_usd: float
    output_usd: float
    cache_read_usd: float | None = None
    cache_write_usd: float | None = None

    def nano_usd(self, usage: Usage) -> int:
        """What ``usage`` costs."""
        read = self.input_usd if self.cache_read_usd is None else self.cache_read_usd
        write = 2 * self.input_usd if self.cache_write_usd is None else self.cache_write_usd
        total = (
            Decimal(str(self.input_usd)) * usage.input_tokens
            + Decimal(str(self.output_usd)) * usage.output_tokens
            + Decimal(str(read)) * usage.cache_read_tokens
            + Decimal(str(write)) * usage.cache_write_tokens
        )
        return _ceiling(total / 1_000_000)


@dataclass(frozen=True)
class PriceBook:
    """Prices by model name.

    Args:
        fixed: the operator's own prices; they go before the table's.
    """

    fixed: Mapping[str, FixedPrice] = field(default_factory=dict)
    _tariffs: Tariffs = field(default_factory=Tariffs, repr=False)

    def price(self, model: str, usage: Usage, at: datetime) -> Price | None:
        """What ``usage`` of ``model`` costs at a time; None when the price is not known, which is not zero."""
        name = _VARIANT.sub("", model)
        fixed = self.fixed.get(name)
        if fixed is not None:
            return Price(fixed.nano_usd(usage), f"settings {name}")
        tariff = self._tariffs.of(name, at)
        if tariff is None:
            return None
        import genai_prices

        return Price(tariff.nano_usd(usage), f"genai-prices {genai_prices.__version__} {tariff.entry}")

    def rates(self, model: str, usage: Usage, at: datetime) -> tuple[int, int] | None:
        """What the input in ``usage`` costs, and a million output tokens beside it; None when there is no price."""
        name = _VARIANT.sub("", model)
        fixed = self.fixed.get(name)
        input_only = usage.model_copy(update={"output_tokens": 0})
        if fixed is not None:
            return fixed.nano_usd(input_only), fixed.nano_usd(Usage(output_tokens=MILLION))
        tariff = self._tariffs.of(name, at)
        return None if tariff is None else (tariff.nano_usd(input_only), tariff.output_nano_usd(usage))

    def knows(self, model: str, at: datetime) -> bool:
        """Whether the model has a price."""
        return self.price(model, Usage(), at) is not None

    def warm(self) -> None:
        """Import the table now rather than in the first request. Takes a quarter of a second; may run in a thread."""
        calculation("claude", Usage(), datetime.now().astimezone())


def price_book(settings: Settings) -> PriceBook:
    """The prices with those that the operator sets.

    Raises:
        RookeryError: ``invalid_argument``: a price in ``ROOKERY_PRICES`` is none.
    """
    known = {field.name for field in fields(FixedPrice)}
    fixed: dict[str, FixedPrice] = {}
    for model, given in settings.prices.items():
        if not {"input_usd", "output_usd"} <= given.keys() <= known or not all(
            0 <= one < 1e6 for one in given.values()
        ):
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                f"ROOKERY_PRICES: the price of {model[:128]} needs input_usd and output_usd, may have cache_read_usd "
                "and cache_write_usd, and all are dollars for a million tokens.",
            )
        fixed[model] = FixedPrice(**given)
    return PriceBook(fixed)


def _ceiling(usd: Decimal) -> int:
    return int((usd * NANO_USD).to_integral_value(rounding=ROUND_CEILING))
