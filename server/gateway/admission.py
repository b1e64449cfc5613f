"""Lays claim to the budgets for each model request before it is sent (rows B01 to B05)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog

from server.budgets import BudgetBook, Caps, Claim, Reservation, Shortage
from server.errors import RookeryError
from server.gateway.fitting import LEAST_VISIBLE, with_output
from server.gateway.refusals import Cause, Refusal
from server.gateway.requests import write_json
from server.gateway.usage import estimate_input_tokens
from server.models import Usage

if TYPE_CHECKING:
    from server.gateway.grants import Binding
    from server.gateway.prices import PriceBook
    from server.gateway.requests import Outbound

PATIENCE_S: Final = 120.0
"""How long a request waits for others to be settled. The CLI itself waits ten minutes for an answer to begin."""

LOOK_AGAIN_S: Final = 1.0

SEARCHES: Final = 10
"""Web searches to reserve for, where a request allows them and names no bound of its own."""

_log = structlog.get_logger(__name__)


class Admission:
    """Admits requests as far as the budgets allow.

    What running requests have reserved is mostly more than they will cost. A request that is short only for that
    reason waits for them to be settled, rather than end its turn over money that is still there.

    Args:
        budgets: where budgets are kept.
        prices: what requests cost.
        caps: the operator's caps.
        owner: id of this server process, by which what it reserved is found again after its death.
    """

    def __init__(self, budgets: BudgetBook, prices: PriceBook, caps: Caps, owner: str) -> None:
        self._budgets = budgets
        self._prices = prices
        self._caps = caps
        self._owner = owner
        self._settled = anyio.Event()

    def settled(self) -> None:
        """Some request was settled: who waits may look again."""
        self._settled.set()
        self._settled = anyio.Event()

    async def admit(self, request_id: str, binding: Binding, turn: int, outbound: Outbound, at: datetime) -> Outbound:
        """Reserve for a request; the request, with less output where the budgets do not pay for all of it.

        Raises:
            Refusal: they do not pay for a useful part, or cannot be asked.
        """
        claim = self.claim(request_id, binding, turn, outbound, at)
        answer = await self._reserve(claim)
        if isinstance(answer, Shortage):
            cause = Cause.PRICE if answer.unit == "price" else Cause.BUDGET
            raise Refusal(402, "billing_error", answer.describe(), cause=cause)
        if answer.output_tokens >= claim.output_tokens:
            return outbound
        _log.info("output_lowered", session_id=binding.session_id, asked=claim.output_tokens, left=answer.output_tokens)
        body = with_output(outbound.body, answer.output_tokens)
        return dataclasses.replace(outbound, body=body, content=write_json(body))

    async def _reserve(self, claim: Claim) -> Reservation | Shortage:
        deadline = anyio.current_time() + PATIENCE_S
        try:
            while True:
                settled = self._settled
                answer = await self._budgets.reserve(claim)
                if isinstance(answer, Reservation) or not answer.may_pass(claim) or anyio.current_time() >= deadline:
                    return answer
                # Other server processes settle unheard: look again from time to time.
                with anyio.move_on_after(LOOK_AGAIN_S):
                    await settled.wait()
        except RookeryError as error:
            _log.warning("budget_not_reached", session_id=claim.session_id, error=str(error), detail=error.detail)
            message = "The budgets cannot be read, so no request is made."
            raise Refusal(503, "api_error", message, cause=Cause.LEDGER) from error

    def claim(self, request_id: str, binding: Binding, turn: int, outbound: Outbound, at: datetime) -> Claim:
        """What a request asks of the budgets: its input on the high side, and all the output it may make."""
        model = outbound.model or ""
        tokens = estimate_input_tokens(outbound.body, len(outbound.content))
        usage = _dearest(outbound, tokens)
        rates = self._prices.rates(model, usage, at)
        return Claim(
            id=request_id,
            owner=self._owner,
            session_id=binding.session_id,
            root_id=binding.root_id,
            principal=binding.principal,
            turn=turn,
            model=model,
            at=at,
            input_tokens=tokens,
            output_tokens=outbound.max_tokens,
            least_output_tokens=min(LEAST_VISIBLE, outbound.max_tokens),
            input_nano_usd=0 if rates is None else rates[0],
            output_nano_usd=None if rates is None else rates[1],
            caps=self._caps,
        )


def _dearest(outbound: Outbound, tokens: int) -> Usage:
    """The dearest way in which so much input can be charged: as a cache write, where the request asks for caching."""
    searches = sum(_searches(tool) for tool in outbound.body.get("tools") or ())
    if b'"cache_control"' not in outbound.content:
        return Usage(input_tokens=tokens, server_tool_requests=searches)
    for_an_hour = tokens if b'"1h"' in outbound.content else 0
    return Usage(cache_write_tokens=tokens, cache_write_1h_tokens=for_an_hour, server_tool_requests=searches)


def _searches(tool: object) -> int:
    if not isinstance(tool, Mapping) or not str(tool.get("type")).startswith(("web_search", "web_fetch")):
        return 0
    uses: Any = tool.get("max_uses")
    return uses if isinstance(uses, int) and 0 < uses < 1000 else SEARCHES
