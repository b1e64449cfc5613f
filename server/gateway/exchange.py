"""One request of a sandbox from its first byte to its ledger entry.

Whatever ends it (the answer, an upstream that fails, a sandbox that goes away, a revoked grant, the end of the
server), the entry is written exactly once, and before the agent can read that its answer is complete.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import structlog

from server.errors import ErrorCode, RookeryError
from server.gateway.account import Account, Books
from server.gateway.admission import Admission
from server.gateway.client import Answer, BrokenOffError, SilentError, UnreachableError, UpstreamClient
from server.gateway.failures import is_credit_exhausted, no_credential
from server.gateway.fallback import substitutes, with_model
from server.gateway.gathering import Gathering
from server.gateway.grants import Binding, Grant, Terms
from server.gateway.limiter import LIMITING, FleetLimiter, Slot
from server.gateway.refusals import JSON, Cause, Refusal, bad_gateway, error_body, forbidden, too_much
from server.gateway.requests import Inbound, Outbound, build, read_body
from server.gateway.responses import EVENT_STREAM, Headers, Reply, passed_headers, with_header
from server.gateway.upstream import Credential, Upstream, headers_with

if TYPE_CHECKING:
    from starlette.types import Receive

MAX_IN_FLIGHT: Final = 32
"""Requests of one grant at a time: the CLI runs at most ten subagents at once, each with one request."""

MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""Request bodies of one grant held in memory at a time."""

MAX_DOCUMENT: Final = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed."""

MAX_ERROR: Final = 256 * 1024
"""Bytes of an upstream's error that are read."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Means:
    """What every exchange works with."""

    upstream: Upstream
    client: UpstreamClient
    books: Books
    limiter: FleetLimiter
    admission: Admission | None
    fallbacks: tuple[str, ...] = ()
    """Models that may answer in the place of one that is overloaded, as far as a session's policy permits them."""


class _OverloadedError(Exception):
    """The upstream refused for want of capacity, and another model may answer instead."""


class Exchange:
    """One request. :meth:`run` is called once."""

    def __init__(
        self, means: Means, account: Account, grant: Grant, binding: Binding, inbound: Inbound, reply: Reply
    ) -> None:
        self._means = means
        self._account = account
        self._grant = grant
        self._binding = binding
        self._inbound = inbound
        self._reply = reply
        self._slot: Slot | None = None
        self._substitutes: tuple[str, ...] = ()
        self._last = True
        self._held = 0

    async def run(self, receive: Receive) -> None:
        """Serve the request. A client that goes away ends it quietly; the grant's revocation cancels it."""
        try:
            outbound = await self._admit(receive)
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
                try:
                    await self._forward(outbound)
                except Refusal as refusal:
                    await self._refuse(refusal)
                group.cancel_scope.cancel()
        except Refusal as refusal:
            await self._refuse(refusal)
        except anyio.EndOfStream:
            _log.debug("client_left_early", session_id=self._binding.session_id)
        finally:
            self._grant.held_bytes -= self._held
            await self._account.settle()
            if self._means.admission is not None:
                self._means.admission.settled()

    async def _admit(self, receive: Receive) -> Outbound:
        """Read, check and rebuild the request."""
        grant = self._grant
        if grant.in_flight > MAX_IN_FLIGHT:
            raise too_much("This agent has too many requests under way.")
        if grant.unrecorded and not await self._means.books.recorder.flush(grant):
            raise Refusal(
                503, "api_error", "The ledger cannot be written, so no further request is made.", cause=Cause.LEDGER
            )
        content = await read_body(self._inbound, receive, self._hold)
        terms = self._terms()
        outbound = build(self._inbound, content, terms.server_tools)
        if outbound.model is not None and not terms.permits_model(outbound.model):
            raise forbidden(f"The policy does not allow the model {outbound.model}, only {terms.models}.")
        self._substitutes = tuple(substitutes(outbound, self._means.fallbacks, terms))
        if outbound.removed:
            _log.warning("removed_from_request", session_id=self._binding.session_id, removed=outbound.removed)
        return outbound

    def _hold(self, size: int) -> None:
        """Count bytes of the body, which is in memory until the request is over.

        Raises:
            Refusal: the agent has too many already.
        """
        if self._grant.held_bytes + size > MAX_HELD_BYTES:
            raise too_much("This agent has too much under way.")
        self._grant.held_bytes += size
        self._held += size

    def _terms(self) -> Terms:
        """The policy in force.

        Raises:
            Refusal: there is none, it cannot be read, or it lets nothing pass now.
        """
        try:
            if self._grant.terms is not None:
                return self._grant.terms()
        except RookeryError as error:
            if error.code is ErrorCode.POLICY_DENIED:
                raise forbidden(error.message) from error
            _log.warning("policy_not_read", session_id=self._binding.session_id, error=str(error))
        raise forbidden("The policy of this session cannot be read, so no request is made.")

    async def _forward(self, outbound: Outbound) -> None:
        """Send the request when the fleet may, with what the budgets cover."""
        credential = self._means.upstream.credential()
        if credential is None and self._means.upstream.needs_credential:
            raise Refusal(401, "authentication_error", no_credential().message, cause=Cause.CREDENTIAL)
        if not self._account.metered:
            await self._send(outbound, credential)
            return
        asked, limiter = outbound, self._means.limiter
        for substitute in self._substitutes:
            if not limiter.is_congested(outbound.model or ""):
                try:
                    await self._attempt(outbound, credential, last=False)
                except _OverloadedError:
                    pass
                else:
                    return
            outbound = self._switched(asked, outbound, substitute)
        await self._attempt(outbound, credential, last=True)

    async def _attempt(self, outbound: Outbound, credential: Credential | None, *, last: bool) -> None:
        """One request upstream, when the fleet may, with what the budgets cover.

        Raises:
            _OverloadedError: it was refused, its lane is congested, and it was not the last model to ask.
        """
        self._last = last
        async with self._means.limiter.slot(outbound.model or "", self._grant) as slot:
            self._slot = slot
            if self._means.admission is not None:
                turn, at = self._grant.turn, self._account.started_at
                outbound = await self._means.admission.admit(self._account.id, self._binding, turn, outbound, at)
            await self._send(outbound, credential)

    def _switched(self, asked: Outbound, refused: Outbound, substitute: str) -> Outbound:
        """The request for another model, with an account of its own; the session's log says so."""
        model = refused.model or ""
        until = self._means.limiter.open_again(model)
        self._grant.say(
            ("fallback", model, substitute, until.replace(microsecond=0)),
            f"The model {model} is overloaded until {until:%H:%M:%S} UTC or longer: {substitute} answers meanwhile.",
            fallback={"from": asked.model, "to": substitute},
        )
        books = self._means.books
        self._account = Account(books, self._grant, self._binding, metered=True, fallback_from=asked.model)
        return with_model(asked, substitute)

    async def _send(self, outbound: Outbound, credential: Credential | None) -> None:
        url = self._means.upstream.url(outbound.endpoint.value, outbound.query)
        headers = headers_with(credential, outbound.headers)
        self._account.open(outbound)
        try:
            answer = await self._means.client.send(outbound.method, url, headers, outbound.content)
        except (UnreachableError, SilentError) as error:
            # An upstream that took the request and fell silent may have done the work; one that was not reached, or
            # hung up without a word, has not charged for it.
            self._account.status = None if isinstance(error, SilentError) else 0
            self._account.failed(0, "api_error", str(error))
            await self._account.settle()
            await self._reply.refuse(bad_gateway("The model API could not be reached.", retry=True))
            return
        try:
            await self._answer(answer, credential)
        except BrokenOffError as error:
            await self._broken_off(str(error))
        finally:
            answer.close()

    async def _answer(self, answer: Answer, credential: Credential | None) -> None:
        account = self._account
        account.status = answer.status
        account.observation.answered()
        account.request_id = (answer.header("request-id") or "")[:200] or None
        if self._slot is not None:
            self._slot.answered(answer.status, _seconds(answer.header("retry-after")))
        headers = passed_headers(answer.headers)
        if 300 <= answer.status < 400:
            raise bad_gateway("The model API answered with a redirect, which is never followed.", retry=False)
        if answer.status >= 400:
            await self._error(answer, headers, credential)
        elif (answer.header("content-type") or "").startswith(EVENT_STREAM):
            await self._stream(answer, headers)
        else:
            await self._document(answer, headers)

    async def _stream(self, answer: Answer, headers: Headers) -> None:
        """Pass events on as they come."""
        await self._reply.start(answer.status, headers)
        meter = self._account.meter
        gathering = Gathering(answer.chunks())
        try:
            await gathering.each(self._pass_on)
        except BrokenOffError:
            # After the end of the message nothing is missing: it is no failure, for the agent or for the turn.
            if meter is None or not meter.ended:
                raise
        finally:
            if meter is not None:
                # What came is charged, also where nobody was left to pass it on to.
                meter.feed(gathering.rest())
        if meter is not None and not meter.ended:
            await self._broken_off("the stream ended before the message did")
        else:
            await self._reply.end()

    async def _pass_on(self, chunk: bytes) -> None:
        meter = self._account.meter
        before = len(chunk) if meter is None else meter.feed(chunk)
        if before:
            await self._reply.chunk(chunk[:before])
        if before < len(chunk):
            # What came before leaves now; the end only when the ledger knows of it: then a turn's costs are
            # complete when the turn is.
            await anyio.lowlevel.checkpoint()
            await self._account.settle()
            await self._reply.chunk(chunk[before:])

    async def _document(self, answer: Answer, headers: Headers) -> None:
        """Pass a whole answer on."""
        content = await _read(answer, MAX_DOCUMENT)
        if self._account.meter is not None:
            self._account.meter.feed_json(content)
            await self._account.settle()
        await self._reply.whole(answer.status, headers, content)

    async def _error(self, answer: Answer, headers: Headers, credential: Credential | None) -> None:
        """Pass an error on in the form of the Messages API, so that the CLI stops where a retry is useless."""
        status = answer.status
        text = (await _read(answer, MAX_ERROR)).decode("utf-8", "replace")
        error_type, message = _error_of(credential.redact(text) if credential is not None else text, status)
        self._account.failed(status, error_type, message, _seconds(answer.header("retry-after")))
        if status in LIMITING and not self._last and self._means.limiter.is_congested(self._account.model or ""):
            await self._account.settle()
            raise _OverloadedError
        if status in LIMITING and self._account.metered:
            self._means.limiter.tell(self._account.model or "", self._grant)
        if is_credit_exhausted(status, error_type, message):
            status, error_type = 402, "billing_error"
        if status in (401, 402, 403, 404):
            headers = with_header(headers, b"x-should-retry", b"false")
        self._account.status = status
        await self._account.settle()
        headers = with_header(headers, b"content-type", JSON.encode())
        await self._reply.whole(status, headers, error_body(error_type, message))

    async def _broken_off(self, detail: str) -> None:
        """The upstream left in the midst of its answer: what came is charged, and the sandbox is told."""
        self._account.failed(502, "api_error", detail)
        await self._account.settle()
        await self._reply.refuse(bad_gateway("The model API broke off its answer.", retry=True))

    async def _refuse(self, refusal: Refusal) -> None:
        if self._account.status is not None:
            self._account.status = refusal.status
        self._account.refused(refusal)
        await self._account.settle()
        await self._reply.refuse(refusal)


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _read(answer: Answer, limit: int) -> bytes:
    """A whole body.

    Raises:
        Refusal: it is longer than ``limit`` bytes.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in answer.chunks():
        size += len(chunk)
        if size > limit:
            raise bad_gateway("The model API's answer is too large.", retry=False)
        chunks.append(chunk)
    return b"".join(chunks)


def _error_of(text: str, status: int) -> tuple[str, str]:
    """Type and message of an error body; a body that is no such thing becomes the message."""
    fallback = "overloaded_error" if status == 529 else "rate_limit_error" if status == 429 else "api_error"
    try:
        error = json.loads(text).get("error")
        return str(error["type"])[:100], str(error["message"])[:4000]
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return fallback, text[:1000] or f"The model API answered with status {status}."


def _seconds(value: str | None) -> float | None:
    """A ``retry-after`` in seconds; None where it is missing or a date."""
    try:
        seconds = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None
