"""The account of one model request: its failures, what it used, and the one ledger entry that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from server.gateway.grants import Binding, Grant, UpstreamFailure
from server.gateway.metering import Meter, Reading
from server.gateway.observation import Observation
from server.gateway.refusals import ERROR_STATUS, Cause, Refusal
from server.gateway.usage import estimate_input_tokens
from server.models import LedgerEntry, Usage

if TYPE_CHECKING:
    from server.clock import Clock
    from server.gateway.prices import PriceBook
    from server.gateway.recorder import Recorder
    from server.gateway.requests import Outbound
    from server.telemetry.metrics import Metrics

CLIENT_GONE: Final = 499
"""Status of an entry whose request the sandbox gave up before an answer began (a custom of HTTP proxies)."""

_MAX_MESSAGE: Final = 2000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Books:
    """What accounts are kept with."""

    recorder: Recorder
    prices: PriceBook
    clock: Clock
    metrics: Metrics


class Account:
    """Follows one request and settles it once.

    Args:
        books: what it is kept with.
        grant: whose failures it adds to.
        binding: whose request it is.
        metered: whether it is a model request; a token count costs nothing and decides nothing.
        fallback_from: the model that the agent asked for, when this request is for another one in its place.
    """

    def __init__(
        self, books: Books, grant: Grant, binding: Binding, *, metered: bool, fallback_from: str | None = None
    ) -> None:
        self.metered = metered
        self._fallback_from = fallback_from
        self._books = books
        self._grant = grant
        self._binding = binding
        self._turn = grant.turn
        self.id = books.clock.identifier("req")
        """Of the request, its reservation and its ledger entry."""
        self.started_at = books.clock.now()
        self.observation = Observation(books.metrics, grant.trace)
        self._outbound: Outbound | None = None
        self._error: str | None = None
        self._settled = False
        self.meter: Meter | None = None
        """Reads the answer's usage."""
        self.status: int | None = None
        """What the sandbox is answered; None until the upstream answered, 0 when it was not reached."""
        self.request_id: str | None = None
        """The upstream's name for the request."""

    @property
    def model(self) -> str | None:
        """The model of the request that went upstream."""
        return None if self._outbound is None else self._outbound.model

    def open(self, outbound: Outbound) -> None:
        """The request goes upstream now; from here on there will be an entry."""
        if not self.metered:
            return
        self._outbound = outbound
        self.observation.forwarded(outbound)
        self.meter = Meter(estimate_input_tokens(outbound.body, len(outbound.content)))

    def failed(self, status: int, error_type: str, message: str, retry_after: float | None = None) -> None:
        """The upstream failed: for the turn's verdict, and for the log."""
        self._error = error_type
        self._note(status, error_type, message, retry_after)

    def refused(self, refusal: Refusal) -> None:
        """The gateway refused: for the turn's verdict, and for the log."""
        self._error = refusal.error_type
        self._note(refusal.status, refusal.error_type, refusal.message, refusal.retry_after, refusal.cause)

    def _note(
        self, status: int, error_type: str, message: str, retry_after: float | None, cause: Cause | None = None
    ) -> None:
        model = self._outbound.model if self._outbound is not None else None
        # For people's eyes and terminals: nothing in it may steer one (row X13).
        message = "".join(character if character.isprintable() else " " for character in message[:_MAX_MESSAGE])
        failure = UpstreamFailure(status, error_type, message, self._books.clock.now(), retry_after, model, cause)
        if self.metered:
            self._grant.record_failure(failure)
        _log.warning(
            "model_request_failed",
            session_id=self._binding.session_id,
            status=status,
            error_type=error_type,
            message=message,
            refused=cause,
            upstream_request_id=self.request_id,
        )

    async def settle(self) -> None:
        """Write the entry, once, whatever is cancelled around."""
        if self._settled or self._outbound is None:
            return
        self._settled = True
        reading = self._reading(self._outbound)
        if reading.error_type is not None:
            status = ERROR_STATUS.get(reading.error_type, 500)
            self.failed(status, reading.error_type, reading.error_message)
        elif reading.complete:
            self._grant.record_success()
        entry = self._entry(self._outbound, reading)
        self.observation.ended(entry)
        await self._books.recorder.record(self._grant, entry)

    def _reading(self, outbound: Outbound) -> Reading:
        """What the request used, on the high side where the answer does not say."""
        assert self.meter is not None
        if self.status == 0 or (self.status or 0) >= 300:
            return Reading(Usage(), complete=False, estimated=False, model=None)
        reading = self.meter.reading()
        if reading.complete or outbound.streams:
            return reading
        # An answer that is not streamed and was given up: how far the model came cannot be seen, so it may have
        # come to its end.
        ceiling = outbound.max_tokens
        usage = reading.usage.model_copy(update={"output_tokens": max(reading.usage.output_tokens, ceiling)})
        return Reading(usage, complete=False, estimated=True, model=reading.model)

    def _entry(self, outbound: Outbound, reading: Reading) -> LedgerEntry:
        requested = outbound.model or ""
        nano_usd: int | None = 0
        source: str | None = None
        if reading.usage != Usage():
            price = None
            for model in dict.fromkeys((reading.model or requested, requested)):
                price = price or self._books.prices.price(model, reading.usage, self.started_at)
            nano_usd, source = (price.nano_usd, price.source) if price is not None else (None, None)
        return LedgerEntry(
            id=self.id,
            principal=self._binding.principal,
            session_id=self._binding.session_id,
            root_id=self._binding.root_id,
            turn=self._turn,
            model=reading.model or requested,
            upstream_request_id=self.request_id,
            status=CLIENT_GONE if self.status is None else self.status,
            complete=reading.complete,
            error=self._error,
            usage=reading.usage,
            estimated=reading.estimated,
            nano_usd=nano_usd,
            price_source=source,
            started_at=self.started_at,
            ended_at=self._books.clock.now(),
            fallback_from=self._fallback_from,
        )
