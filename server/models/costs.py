"""What a session costs: tokens, money, and how long its sandbox ran."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import Field

from server.models.base import Record

NANO_USD: Final = 1_000_000_000
"""Nano-dollars in a dollar."""


class Usage(Record):
    """Tokens of one or many model requests, by kind."""

    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0, description="5-minute and 1-hour cache writes together")
    cache_write_1h_tokens: int = Field(default=0, ge=0, description="the part of them that lives an hour")
    server_tool_requests: int = Field(default=0, ge=0, description="web searches and fetches run by the provider")

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            server_tool_requests=self.server_tool_requests + other.server_tool_requests,
        )


class Cost(Record):
    """What model requests cost, as answered by tools. Sums are the ledger's."""

    usd: float = Field(default=0.0, description="dollars of all requests with a known price, and of sandboxes")
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    requests: int = Field(default=0, description="model requests, failed ones included")
    failures: int = Field(default=0, description="model requests that failed")
    unpriced_requests: int = Field(default=0, description="requests whose model has no known price; not in usd")
    sandbox_seconds: float = Field(default=0.0, description="how long a sandbox ran")
    sandbox_usd: float = Field(default=0.0, description="the part of usd that sandboxes cost")


class LedgerEntry(Record):
    """One model request, written once by the gateway: the truth for costs (DESIGN section 2)."""

    id: str
    principal: str
    session_id: str
    root_id: str
    turn: int = Field(description="the session's turn it belongs to; 0 before the first")
    model: str
    upstream_request_id: str | None = None
    status: int = Field(description="HTTP status given to the sandbox; 0 when the upstream could not be reached")
    complete: bool = Field(description="False when the stream was cut, by either side")
    error: str | None = Field(default=None, description="the error's type, as the Messages API names it")
    usage: Usage
    estimated: bool = Field(
        default=False,
        description="the usage is a conservative estimate: the upstream's own figures were missing or bad",
    )
    nano_usd: int | None = Field(description="price in nano-dollars; None when the model's price is unknown")
    price_source: str | None = None
    started_at: datetime
    ended_at: datetime
    fallback_from: str | None = Field(
        default=None, description="the model that the agent asked for, when another one answered in its place"
    )


class SandboxTime(Record):
    """A stretch of time for which a session had a sandbox running: a line of the ledger, written once."""

    id: str
    principal: str
    session_id: str
    root_id: str
    kind: str = Field(description="the provider")
    started_at: datetime
    ended_at: datetime
    milliseconds: int = Field(ge=0, description="by a clock that never jumps, unlike the two above")
    nano_usd: int = Field(ge=0)


class RunningSandbox(Record):
    """A session's sandbox that runs, and what its next line in the ledger will say."""

    session_id: str
    line_id: str = Field(description="the id of its next line, so that whoever writes that writes it once")
    owner: str = Field(description="the server that meters it")
    principal: str
    root_id: str
    kind: str = Field(description="the provider")
    since: datetime = Field(description="where its next line begins")
    nano_usd_per_s: int = Field(ge=0)
    lasts_s: int = Field(ge=0, description="how long it runs on, and costs, without its server")

    def line(self, ended_at: datetime, milliseconds: int) -> SandboxTime:
        """The line for the stretch that ended."""
        return SandboxTime(
            id=self.line_id,
            principal=self.principal,
            session_id=self.session_id,
            root_id=self.root_id,
            kind=self.kind,
            started_at=self.since,
            ended_at=ended_at,
            milliseconds=milliseconds,
            nano_usd=-(-milliseconds * self.nano_usd_per_s // 1000),
        )
