"""Agents whose model requests do not pass the gateway (``ROOKERY_E2B_TRAFFIC=direct``): their costs are taken from
what they say of themselves at the end of each turn, and a spent budget stops the next turn, not the present one.

That is weaker than the gateway's ledger: a turn can pass its cap, a turn that was killed tells nothing, and the agent's
CLI, which runs within the agent's reach, is believed.
"""

from __future__ import annotations

from claude_agent_sdk import ResultMessage

from server.models import LedgerEntry, SessionRecord, TurnRecord, Usage
from server.services import Services
from server.settings import SandboxKind

PRICE_SOURCE = "as the agent told"


def is_direct(services: Services, session: SessionRecord) -> bool:
    """Whether the session's model requests go past the gateway."""
    return session.sandbox_kind == SandboxKind.E2B and services.settings.e2b_traffic == "direct"


async def is_spent(services: Services, session: SessionRecord) -> bool:
    """Whether the session's budget leaves nothing for another turn.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    left = (await services.store.standing(session.id)).remaining_nano_usd
    return left is not None and left <= 0


async def book(services: Services, session: SessionRecord, turn: TurnRecord, result: ResultMessage | None) -> None:
    """Write what a turn's result says of its costs into the ledger, as one line.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    if result is None or not result.usage:
        return
    usage, now = _usage(result.usage), services.clock.now()
    if usage == Usage():
        return
    used = result.model_usage or {}
    model = max(used, key=lambda name: used[name].get("outputTokens", 0), default=session.model or "")
    price = services.gateway.price(model, usage, now)
    await services.store.record_request(
        LedgerEntry(
            id=services.clock.identifier("req"),
            principal=session.principal,
            session_id=session.id,
            root_id=session.root_id,
            turn=turn.number,
            model=model,
            status=200,
            complete=True,
            usage=usage,
            estimated=True,
            nano_usd=None if price is None else price.nano_usd,
            price_source=None if price is None else f"{price.source}, {PRICE_SOURCE}",
            started_at=turn.started_at,
            ended_at=now,
        )
    )


def _usage(told: dict[str, object]) -> Usage:
    def count(name: str) -> int:
        value = told.get(name)
        return value if isinstance(value, int) and value >= 0 else 0

    return Usage(
        input_tokens=count("input_tokens"),
        output_tokens=count("output_tokens"),
        cache_read_tokens=count("cache_read_input_tokens"),
        cache_write_tokens=count("cache_creation_input_tokens"),
    )
