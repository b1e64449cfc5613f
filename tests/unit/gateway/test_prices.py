"""Prices: exact, rounded up, and never zero for what is not known."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ErrorCode, RookeryError
from server.gateway.prices import FixedPrice, PriceBook, price_book
from server.gateway.tariffs import calculation
from server.models import NANO_USD, Usage
from server.settings import Settings

AT = datetime(2026, 11, 23, tzinfo=UTC)


def test_every_kind_of_token_has_its_own_price() -> None:
    usage = Usage(
        input_tokens=1_000_000,
        output_tokens=1_000_000,
        cache_read_tokens=1_000_000,
        cache_write_tokens=2_000_000,
        cache_write_1h_tokens=1_000_000,
    )
    price = PriceBook().price("claude-opus-4-5", usage, AT)
    assert price is not None
    # Dollars for a million: 5 input, 25 output, 0.5 cache read, 6.25 and 10 for the two kinds of cache write.
    assert price.nano_usd == round((5 + 25 + 0.5 + 6.25 + 10) * 1_000_000_000)
    assert "claude-opus-4-5" in price.source


@pytest.mark.parametrize("name", ["claude-sonnet-4-5-20250929", "claude-sonnet-4-5[1m]"])
def test_dated_names_and_the_clis_variants_have_their_models_price(name: str) -> None:
    usage = Usage(input_tokens=1000)
    plain = PriceBook().price("claude-sonnet-4-5", usage, AT)
    dated = PriceBook().price(name, usage, AT)
    assert plain is not None and dated is not None
    assert plain.nano_usd == dated.nano_usd == 3_000_000


def test_a_model_without_a_price_is_unknown_not_free() -> None:
    assert PriceBook().price("claude-of-next-year", Usage(input_tokens=1), AT) is None
    assert not PriceBook().knows("claude-of-next-year", AT)
    assert PriceBook().knows("claude-opus-4-5", AT)


def test_fractions_of_a_nano_dollar_are_rounded_up() -> None:
    book = PriceBook({"house-model": FixedPrice(input_usd=0.0001, output_usd=0)})
    price = book.price("house-model", Usage(input_tokens=1), AT)
    assert price is not None
    assert price.nano_usd == 1


@pytest.mark.parametrize(
    "price", [{"input_usd": 1}, {"input_usd": -1, "output_usd": 1}, {"input_usd": 1, "output_usd": 1, "x": 1}]
)
def test_a_price_of_the_operators_that_is_none_is_refused(price: dict[str, float]) -> None:
    with pytest.raises(RookeryError) as refused:
        price_book(Settings(prices={"house-model": price}))
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_prices_come_from_the_settings() -> None:
    book = price_book(Settings(prices={"house-model": {"input_usd": 1, "output_usd": 2}}))
    price = book.price("house-model", Usage(output_tokens=1), AT)
    assert price is not None
    assert price.nano_usd == 2000


def test_the_operators_price_goes_before_the_tables() -> None:
    book = PriceBook({"claude-opus-4-5": FixedPrice(input_usd=1, output_usd=2, cache_read_usd=0.5)})
    usage = Usage(input_tokens=10, output_tokens=10, cache_read_tokens=10, cache_write_tokens=10)
    price = book.price("claude-opus-4-5", usage, AT)
    assert price is not None
    assert price.nano_usd == 10 * (1000 + 2000 + 500 + 2000)
    assert price.source.startswith("settings")


_BOOK = PriceBook()
_TOKENS = st.integers(0, 3_000_000) | st.integers(199_990, 200_010)


@given(
    st.sampled_from(["claude-sonnet-4-5", "claude-opus-4-5", "claude-haiku-4-5", "claude-sonnet-4-20250514"]),
    st.tuples(_TOKENS, _TOKENS, _TOKENS, _TOKENS, _TOKENS, st.integers(0, 100)),
)
def test_prices_are_the_tables_to_the_nano_dollar_in_long_contexts_too(model: str, counts: tuple[int, ...]) -> None:
    short, output, read, write, lasting, searches = counts
    usage = Usage(
        input_tokens=short,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=write + lasting,
        cache_write_1h_tokens=lasting,
        server_tool_requests=searches,
    )
    table, price, rates = calculation(model, usage, AT), _BOOK.price(model, usage, AT), _BOOK.rates(model, usage, AT)
    assert table is not None and price is not None and rates is not None
    assert price.nano_usd == -int(-(table.total_price * NANO_USD) // 1)
    assert rates[1] == (table.output_price * NANO_USD * 1_000_000 / output if output else rates[1])
    assert price.nano_usd <= rates[0] + -(-rates[1] * output // 1_000_000) <= price.nano_usd + 1
