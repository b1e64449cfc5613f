"""Admission: what a request claims, how it is made smaller, and what the agent hears when it cannot be paid for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.budgets import Cap, Caps, Claim, Reservation, Scope, Shortage, Standing, fit
from server.errors import ErrorCode, RookeryError
from server.gateway.admission import Admission
from server.gateway.fitting import LEAST_THINKING, LEAST_VISIBLE, with_output
from server.gateway.grants import Binding
from server.gateway.prices import PriceBook
from server.gateway.refusals import Cause, Refusal
from server.gateway.requests import Endpoint, Inbound, Outbound, build, write_json
from tests.gateways import request

AT = datetime(2026, 11, 23, tzinfo=UTC)
BINDING = Binding("s1", "root", "me")


class Book:
    """Grants what it is told, and remembers the claim."""

    def __init__(self, answer: Reservation | Shortage | RookeryError | None = None) -> None:
        self.answer = answer
        self.claims: list[Claim] = []

    async def reserve(self, claim: Claim) -> Reservation | Shortage:
        self.claims.append(claim)
        if isinstance(self.answer, RookeryError):
            raise self.answer
        return self.answer or granted(claim.output_tokens)


def granted(tokens: int) -> Reservation:
    return Reservation(id="r", output_tokens=tokens, nano_usd=1, tokens=tokens)


def outbound(**fields: Any) -> Outbound:
    return build(Inbound(Endpoint.MESSAGES, b"", {}), write_json(request(**fields)), frozenset())


async def admitted(book: Book, **fields: Any) -> Outbound:
    return await Admission(book, PriceBook(), Caps(), "server_1").admit("r1", BINDING, 3, outbound(**fields), AT)


async def test_a_claim_is_for_the_estimated_input_and_all_the_output_there_may_be() -> None:
    book = Book()
    await admitted(book, text="x" * 30_000, max_tokens=32_000)
    [claim] = book.claims
    assert (claim.id, claim.owner, claim.session_id, claim.root_id, claim.turn) == ("r1", "server_1", "s1", "root", 3)
    assert 10_000 <= claim.input_tokens <= 10_200
    assert claim.output_tokens == 32_000
    # Claude Sonnet 4.5: 3 dollars for a million input tokens, 15 for output.
    assert claim.input_nano_usd == claim.input_tokens * 3_000
    assert claim.nano_usd(1000) == claim.input_nano_usd + 1000 * 15_000


@pytest.mark.parametrize(("ttl", "factor"), [("5m", 1.25), ("1h", 2)])
async def test_input_that_may_be_cached_is_claimed_at_the_price_of_a_cache_write(ttl: str, factor: float) -> None:
    book = Book()
    system = [{"type": "text", "text": "x" * 3000, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
    await admitted(book, system=system)
    [claim] = book.claims
    assert claim.input_nano_usd == claim.input_tokens * 3_000 * factor


async def test_what_is_granted_in_full_goes_unchanged() -> None:
    assert (await admitted(Book(), max_tokens=32_000)).content == outbound(max_tokens=32_000).content


async def test_less_output_is_asked_for_when_less_is_granted() -> None:
    thinking = {"type": "enabled", "budget_tokens": 31_999, "display": "summarized"}
    lowered = await admitted(Book(granted(10_000)), max_tokens=32_000, thinking=thinking)
    assert lowered.body["max_tokens"] == lowered.max_tokens == 10_000
    assert lowered.body["thinking"] == thinking | {"budget_tokens": 10_000 - LEAST_VISIBLE}
    assert write_json(lowered.body) == lowered.content


@given(st.integers(1, 64_000), st.integers(1_024, 63_999), st.booleans())
def test_a_lowered_request_keeps_room_for_words_and_obeys_the_api(tokens: int, budget: int, adaptive: bool) -> None:
    thinking: dict[str, Any] = {"type": "adaptive"} if adaptive else {"type": "enabled", "budget_tokens": budget}
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses_20250919"}]
    body = request(max_tokens=64_000, thinking=thinking, context_management={"edits": edits})
    before = write_json(body)
    lowered = with_output(body, tokens)
    assert write_json(body) == before
    assert lowered["max_tokens"] == tokens
    left = lowered.get("thinking", {}).get("budget_tokens")
    if left is not None:
        assert LEAST_THINKING <= left <= min(budget, tokens - LEAST_VISIBLE)
    if "thinking" not in lowered:
        assert tokens - LEAST_VISIBLE < LEAST_THINKING
        assert lowered["context_management"]["edits"] == edits[1:]
    if adaptive:
        assert lowered["thinking"] == thinking


async def test_a_small_request_needs_no_more_than_it_asks_for() -> None:
    book = Book()
    await admitted(book, max_tokens=500)
    assert book.claims[0].least_output_tokens == 500


async def test_a_shortage_is_a_refusal_for_money_that_says_what_to_do() -> None:
    shortage = Shortage(scope=Scope.SESSION, unit="usd", cap=5_000_000_000, remaining=12_300_000)
    with pytest.raises(Refusal) as refused:
        await admitted(Book(shortage))
    assert (refused.value.status, refused.value.error_type) == (402, "billing_error")
    assert refused.value.cause is Cause.BUDGET
    assert "$0.0123 of $5.00" in refused.value.message
    assert "budget_usd" in refused.value.message
    assert (b"x-should-retry", b"false") in refused.value.headers


@pytest.mark.parametrize(("scope", "variable"), [(Scope.TREE, "TREE"), (Scope.DAY, "DAILY")])
async def test_a_shortage_elsewhere_names_the_setting(scope: Scope, variable: str) -> None:
    with pytest.raises(Refusal) as refused:
        await admitted(Book(Shortage(scope=scope, unit="tokens", cap=1000, remaining=-5)))
    assert f"ROOKERY_{variable}_BUDGET_TOKENS" in refused.value.message
    assert "0 of 1,000 tokens" in refused.value.message


async def test_g05_an_unknown_price_under_a_dollar_cap_is_refused_as_such() -> None:
    """Row G05: unknown price."""
    with pytest.raises(Refusal) as refused:
        await admitted(Book(Shortage(scope=Scope.SESSION, unit="price", cap=1, remaining=1)), model="claude-next")
    assert refused.value.cause is Cause.PRICE
    assert "ROOKERY_PRICES" in refused.value.message
    book = Book()
    await admitted(book, model="claude-next")
    assert book.claims[0].output_nano_usd is None


async def test_budgets_out_of_reach_refuse() -> None:
    broken = RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "no disk")
    with pytest.raises(Refusal) as refused:
        await admitted(Book(broken))
    assert (refused.value.status, refused.value.cause) == (503, Cause.LEDGER)


def a_claim(**fields: Any) -> Claim:
    values: dict[str, Any] = {
        "id": "r",
        "owner": "o",
        "session_id": "s",
        "root_id": "s",
        "principal": "p",
        "turn": 1,
        "model": "m",
        "at": AT,
        "input_tokens": 100,
        "output_tokens": 8000,
        "least_output_tokens": 2048,
        "input_nano_usd": 100_000,
        "output_nano_usd": 15_000_000_000,
    }
    return Claim.model_validate(values | fields)


@given(
    caps=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.booleans()), max_size=5),
    price=st.integers(1, 10**11),
)
def test_what_fits_is_paid_for_by_every_account_and_never_more_than_asked(
    caps: list[tuple[int, int, bool]], price: int
) -> None:
    claim = a_claim(output_nano_usd=price)
    standings = [
        Standing(
            scope=Scope.TREE,
            cap=Cap(nano_usd=cap) if dollars else Cap(tokens=cap),
            spent_nano_usd=spent if dollars else 0,
            spent_tokens=0 if dollars else spent,
        )
        for cap, spent, dollars in caps
    ]
    result = fit(claim, standings)
    if isinstance(result, Shortage):
        assert standings
        return
    assert claim.least_output_tokens <= result <= claim.output_tokens
    for standing in standings:
        dollars, tokens = standing.remaining_nano_usd, standing.remaining_tokens
        assert dollars is None or claim.nano_usd(result) <= dollars
        assert tokens is None or claim.input_tokens + result <= tokens


async def test_a_request_waits_for_money_that_others_have_only_reserved() -> None:
    short = Shortage(scope=Scope.SESSION, unit="usd", cap=10**12, remaining=0, reserved=10**12)
    book = Book(short)
    admission = Admission(book, PriceBook(), Caps(), "server_1")
    got: list[Outbound] = []

    async def ask() -> None:
        got.append(await admission.admit("r1", BINDING, 3, outbound(), AT))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert not got
            book.answer = None
            admission.settled()
    assert len(got) == 1


@pytest.mark.parametrize(
    "short",
    [
        {"unit": "usd", "remaining": 0, "reserved": 0},
        {"unit": "usd", "remaining": 0, "reserved": 1000},
        {"unit": "tokens", "remaining": 10, "reserved": 20},
        {"unit": "price", "remaining": 10**12, "reserved": 10**12},
    ],
)
async def test_waiting_that_cannot_help_is_not_begun(short: dict[str, Any]) -> None:
    with anyio.fail_after(5), pytest.raises(Refusal):
        await admitted(Book(Shortage(scope=Scope.SESSION, cap=10**12, **short)))


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gateway.admission.PATIENCE_S", 0.05)
    monkeypatch.setattr("server.gateway.admission.LOOK_AGAIN_S", 0.01)
    book = Book(Shortage(scope=Scope.SESSION, unit="usd", cap=10**12, remaining=0, reserved=10**12))
    with anyio.fail_after(5), pytest.raises(Refusal):
        await admitted(book)
    assert len(book.claims) > 1
