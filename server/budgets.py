"""Budgets: what may still be spent, and how a model request lays claim to it before it is sent.

A cap stands on an *account*: a session, the tree of sessions below one root, a principal, a principal's day (UTC). A
request reserves what it can cost at most in all accounts that it belongs to, at once or not at all; its ledger entry,
which carries the reservation's id, puts the true cost in the place of what was reserved. A session's account holds
what its spawned descendants spend too, and a spawned child's cap is set aside there as long as the child lives: so
children can never spend, nor be promised, more than their parent has left. A fork has the cap of its own record, and
shares those of tree, principal and day.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import Field

from server.models import NANO_USD, Record

if TYPE_CHECKING:
    from server.settings import Settings

WARNING_LEVELS: Final = (50, 80, 95)
"""Percent of a cap at which the session that spends gets a warning into its log."""


def warning_level(percent: int) -> int:
    """The highest level that is reached; 0 for none."""
    return max((level for level in WARNING_LEVELS if level <= percent), default=0)


class Scope(StrEnum):
    """What kind of account a cap stands on."""

    SESSION = "session"
    TREE = "tree"
    PRINCIPAL = "principal"
    DAY = "day"
    TOKEN = "token"  # noqa: S105 - the name of a scope
    """All sessions that were spawned with one API token."""


class Cap(Record):
    """The most that an account may spend; None: no cap of this kind."""

    nano_usd: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0, description="tokens of all kinds together")


class Caps(Record):
    """The operator's caps. A session's cap in dollars is not here but in its own record."""

    session: Cap = Cap()
    tree: Cap = Cap()
    principal: Cap = Cap()
    day: Cap = Cap()


class Claim(Record):
    """What one model request asks of the budgets."""

    id: str = Field(description="of the request; its ledger entry has the same")
    owner: str = Field(description="id of the server process that makes it")
    session_id: str
    root_id: str
    principal: str
    turn: int
    model: str
    at: datetime
    input_tokens: int = Field(ge=0, description="estimate, on the high side")
    output_tokens: int = Field(ge=0, description="what the request would like to have at most")
    least_output_tokens: int = Field(ge=0, description="with less than this it is of no use")
    input_nano_usd: int = Field(default=0, ge=0, description="price of the input")
    output_nano_usd: int | None = Field(
        ge=0, description="price of a million output tokens in nano-dollars; None when the model's price is unknown"
    )
    caps: Caps = Caps()

    def nano_usd(self, output_tokens: int) -> int:
        """The most that the request costs with so much output, rounded up; 0 when the price is unknown."""
        return self.input_nano_usd + -(-output_tokens * (self.output_nano_usd or 0) // 1_000_000)

    def affordable(self, nano_usd: int) -> int:
        """The most output that so much money pays for; negative when it does not even pay for the input."""
        left = nano_usd - self.input_nano_usd
        if left < 0:
            return -1
        return left * 1_000_000 // self.output_nano_usd if self.output_nano_usd else self.output_tokens


class Reservation(Record):
    """A granted claim."""

    id: str
    output_tokens: int = Field(description="granted: at most what was asked for, at least what was needed")
    nano_usd: int
    tokens: int


class Shortage(Record):
    """Why a claim was not granted: the account with the least left."""

    scope: Scope
    unit: str = Field(description="usd, tokens, or price: the model's price is unknown and the cap is in dollars")
    cap: int
    remaining: int = Field(description="neither spent nor reserved")
    reserved: int = Field(default=0, description="reserved by requests under way: some of it will come back")

    def may_pass(self, claim: Claim) -> bool:
        """Whether the claim could be granted if requests under way turned out to cost nothing: waiting may help."""
        most = self.remaining + self.reserved
        if self.unit == "usd":
            return self.reserved > 0 and claim.affordable(most) >= claim.least_output_tokens
        return self.unit == "tokens" and most >= claim.input_tokens + claim.least_output_tokens and self.reserved > 0

    def describe(self) -> str:
        """What is short, in words for the agent and its caller."""
        name, variable = _NAMES[self.scope]
        if self.unit == "price":
            return (
                f"The price of this model is not known, and the budget of the {name} is in dollars: "
                "name another model, or set its price in ROOKERY_PRICES."
            )
        if self.unit == "tokens":
            left, cap = f"{max(0, self.remaining):,}", f"{self.cap:,} tokens"
            remedy = f"raise ROOKERY_{variable}_TOKENS to go on"
            if self.scope is Scope.SESSION:
                remedy = "continue_session with a higher budget_tokens (the new total) goes on"
        else:
            left, cap = f"${max(0, self.remaining) / NANO_USD:.4f}", f"${self.cap / NANO_USD:.2f}"
            remedy = f"raise ROOKERY_{variable}_USD to go on"
            if self.scope is Scope.SESSION:
                remedy = "continue_session with a higher budget_usd (the new total) goes on"
            elif self.scope is Scope.TOKEN:
                remedy = "a fork or a new session by another token goes on"
        return f"The budget of the {name} does not cover the next model request ({left} of {cap} left): {remedy}."


_NAMES: Final = {
    Scope.SESSION: ("session", "DEFAULT_BUDGET"),
    Scope.TREE: ("whole tree of sessions", "TREE_BUDGET"),
    Scope.PRINCIPAL: ("account", "PRINCIPAL_BUDGET"),
    Scope.DAY: ("account's day (UTC)", "DAILY_BUDGET"),
    Scope.TOKEN: ("API token that spawned the session", ""),
}


class Standing(Record):
    """How an account stands. Dollars in nano-dollars; None: no cap of this kind."""

    scope: Scope
    cap: Cap
    spent_nano_usd: int = 0
    reserved_nano_usd: int = 0
    allotted_nano_usd: int = 0
    """Set aside for spawned children."""
    spent_tokens: int = 0
    reserved_tokens: int = 0
    allotted_tokens: int = 0

    @property
    def remaining_nano_usd(self) -> int | None:
        """What is neither spent, reserved nor set aside; negative when the cap was lowered below that."""
        used = self.spent_nano_usd + self.reserved_nano_usd + self.allotted_nano_usd
        return None if self.cap.nano_usd is None else self.cap.nano_usd - used

    @property
    def remaining_tokens(self) -> int | None:
        """As :attr:`remaining_nano_usd`, in tokens."""
        used = self.spent_tokens + self.reserved_tokens + self.allotted_tokens
        return None if self.cap.tokens is None else self.cap.tokens - used

    @property
    def percent(self) -> int:
        """How much of the cap is spent, of both caps the one that is nearer to its end; 0 without a cap."""
        parts = ((self.spent_nano_usd, self.cap.nano_usd), (self.spent_tokens, self.cap.tokens))
        return max((spent * 100 // cap for spent, cap in parts if cap), default=0)


class BudgetBook(Protocol):
    """Where budgets are kept. The ledger that goes with it settles each reservation with the entry of the same id."""

    async def reserve(self, claim: Claim) -> Reservation | Shortage:
        """Reserve in all accounts of the claim, at once or not at all.

        As much output as all accounts can pay for is granted, between ``least_output_tokens`` and ``output_tokens``.

        Raises:
            RookeryError: ``storage_unavailable``; nothing is reserved then.
        """
        ...


def fit(claim: Claim, standings: list[Standing]) -> int | Shortage:
    """How much output all accounts can pay for, or which one has too little. Pure."""
    granted = claim.output_tokens
    for standing in standings:
        dollars, tokens = standing.remaining_nano_usd, standing.remaining_tokens
        if dollars is not None and standing.cap.nano_usd is not None:
            if claim.output_nano_usd is None:
                return Shortage(scope=standing.scope, unit="price", cap=standing.cap.nano_usd, remaining=dollars)
            affordable = claim.affordable(dollars)
            if affordable < claim.least_output_tokens:
                reserved = standing.reserved_nano_usd
                short = {"cap": standing.cap.nano_usd, "remaining": dollars, "reserved": reserved}
                return Shortage(scope=standing.scope, unit="usd", **short)
            granted = min(granted, affordable)
        if tokens is not None and standing.cap.tokens is not None:
            affordable = tokens - claim.input_tokens
            if affordable < claim.least_output_tokens:
                reserved = standing.reserved_tokens
                short = {"cap": standing.cap.tokens, "remaining": tokens, "reserved": reserved}
                return Shortage(scope=standing.scope, unit="tokens", **short)
            granted = min(granted, affordable)
    return granted


def caps_of(settings: Settings) -> Caps:
    """The operator's caps."""

    def cap(usd: float | None, tokens: int | None) -> Cap:
        return Cap(nano_usd=None if usd is None else round(usd * NANO_USD), tokens=tokens)

    return Caps(
        session=cap(None, settings.default_budget_tokens),
        tree=cap(settings.tree_budget_usd, settings.tree_budget_tokens),
        principal=cap(settings.principal_budget_usd, settings.principal_budget_tokens),
        day=cap(settings.daily_budget_usd, settings.daily_budget_tokens),
    )
