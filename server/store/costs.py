"""Reports of costs: of a session, of a session with all that descends from it, or of all the principal's."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select

from server.budgets import Cap, Caps, Scope, Standing
from server.models import NANO_USD, Cost
from server.requests import CostRequest
from server.store.accounts import Account, account_id, day_id, look, token_accounts
from server.store.budgets import session_account
from server.store.ledger import cost_of, totals
from server.store.room import Room, not_found
from server.store.tables import SUMS, cost_totals, principal_totals, session_labels, sessions, turns
from server.views import BudgetView, CostGroup, CostReport

MAX_GROUPS: Final = 100
"""Groups in one report. The cheaper rest is summed up in one more group, so that groups still add up."""

OTHERS: Final = "(others)"
UNLABELLED: Final = "(no label)"


class Costs(Room):
    """Reports of costs."""

    async def cost_report(self, principal: str, request: CostRequest, caps: Caps | None = None) -> CostReport:
        """Sums of the ledger in the scope asked for, by group if asked for.

        What a deleted session cost is kept, and can be asked for by its id. A session with several labels counts in
        the group of each, so those groups can add up to more than the total.

        Args:
            principal: whose costs.
            request: which, and how to group them.
            caps: the operator's caps, to be shown beside the session's own.

        Raises:
            RookeryError: ``session_not_found``.
        """
        return await self._database.read(_report, principal, request, caps or Caps(), self._now())


def _report(connection: Connection, principal: str, request: CostRequest, caps: Caps, at: datetime) -> CostReport:
    table, scope = principal_totals, principal_totals.c.principal == principal
    root_id: str | None = None
    if request.session_id is not None:
        root_id = _root(connection, principal, request.session_id)
        table, scope = cost_totals, _within(request.session_id, root_id, tree=request.tree)
    total = cost_of(connection.execute(totals(table, scope)).one())
    groups: tuple[CostGroup, ...] = ()
    if request.group_by is not None:
        if request.session_id is None and request.group_by in ("session", "label"):
            table, scope = cost_totals, cost_totals.c.principal == principal
        groups = _groups(connection, table, scope, request.group_by)
    standings = [look(connection, one) for one in _accounts(connection, principal, request, root_id, caps, at)]
    own = next((one for one in standings if one.scope is Scope.SESSION), None)
    budget = None if own is None or request.tree else own.cap.nano_usd
    left = None if own is None or budget is None else own.remaining_nano_usd
    sdk = _sdk_usd(connection, request.session_id) if request.session_id and not request.tree else None
    return CostReport(
        scope="principal" if request.session_id is None else "tree" if request.tree else "session",
        session_id=request.session_id,
        total=total,
        cache_hit_rate=_cache_hit_rate(total),
        budget_usd=None if budget is None else budget / NANO_USD,
        budget_remaining_usd=None if left is None else max(0, left) / NANO_USD,
        budgets=tuple(_budget(one) for one in standings),
        groups=groups,
        group_by=request.group_by,
        sdk_usd=sdk,
        sdk_note=_sdk_note(sdk, total),
        note=_note(total, request),
    )


def _root(connection: Connection, principal: str, session_id: str) -> str | None:
    """Root of the principal's session; None when it was deleted, but its costs are known."""
    query = select(sessions.c.root_id).where(sessions.c.id == session_id, sessions.c.principal == principal)
    root_id: str | None = connection.execute(query).scalar()
    if root_id is None:
        kept = select(1).where(cost_totals.c.session_id == session_id, cost_totals.c.principal == principal)
        if connection.execute(kept.limit(1)).first() is None:
            raise not_found()
    return root_id


def _accounts(
    connection: Connection, principal: str, request: CostRequest, root_id: str | None, caps: Caps, at: datetime
) -> list[Account]:
    """The accounts to show: the session's own, and those of the operator's caps that bind where costs are asked for."""
    found: list[Account] = []
    if request.session_id is not None and root_id is not None:
        found.append(session_account(connection, request.session_id, caps))
        found.append(Account(account_id(Scope.TREE, root_id), Scope.TREE, caps.tree))
        found.extend(token_accounts(connection, request.session_id))
    found.append(Account(account_id(Scope.PRINCIPAL, principal), Scope.PRINCIPAL, caps.principal))
    found.append(Account(day_id(principal, at), Scope.DAY, caps.day))
    return [one for one in found if one.scope is Scope.SESSION or one.cap != Cap()]


def _budget(standing: Standing) -> BudgetView:
    cap, dollars, tokens = standing.cap, standing.remaining_nano_usd, standing.remaining_tokens
    return BudgetView(
        scope=standing.scope.value,
        budget_usd=None if cap.nano_usd is None else cap.nano_usd / NANO_USD,
        spent_usd=standing.spent_nano_usd / NANO_USD,
        reserved_usd=standing.reserved_nano_usd / NANO_USD,
        allotted_usd=standing.allotted_nano_usd / NANO_USD,
        remaining_usd=None if dollars is None else max(0, dollars) / NANO_USD,
        budget_tokens=cap.tokens,
        spent_tokens=standing.spent_tokens,
        reserved_tokens=standing.reserved_tokens,
        allotted_tokens=standing.allotted_tokens,
        remaining_tokens=None if tokens is None else max(0, tokens),
    )


def _within(session_id: str, root_id: str | None, *, tree: bool) -> ColumnElement[bool]:
    if not tree:
        return cost_totals.c.session_id == session_id
    if root_id in (None, session_id):
        # A root's tree is known by the ledger itself, also where a branch was deleted.
        return (cost_totals.c.root_id == session_id) | (cost_totals.c.session_id == session_id)
    branch = select(sessions.c.id).where(sessions.c.id == session_id).cte("branch", recursive=True)
    branch = branch.union(select(sessions.c.id).join(branch, sessions.c.parent_id == branch.c.id))
    return cost_totals.c.session_id.in_(select(branch.c.id))


def _groups(connection: Connection, table: Table, scope: ColumnElement[bool], group_by: str) -> tuple[CostGroup, ...]:
    """The groups, days newest first and all others dearest first."""
    if group_by == "label":
        key: ColumnElement[Any] = func.coalesce(session_labels.c.key + "=" + session_labels.c.value, UNLABELLED)
        labelled = table.outerjoin(session_labels, session_labels.c.session_id == table.c.session_id)
        query = totals(table, scope, by=[key.label("key")]).select_from(labelled)
    else:
        key = table.c["session_id" if group_by == "session" else group_by]
        query = totals(table, scope, by=[key.label("key")])
    order = key.desc() if group_by == "day" else func.sum(table.c.nano_usd).desc()
    query = query.order_by(order, key)
    rows = connection.execute(query.limit(MAX_GROUPS + 1)).all()
    groups = [CostGroup(key=row.key, cost=cost_of(row)) for row in rows[:MAX_GROUPS]]
    if len(rows) > MAX_GROUPS:
        rest = query.offset(MAX_GROUPS).subquery()
        sums: Select[Any] = select(*(func.sum(rest.c[name]).label(name) for name in SUMS))
        groups.append(CostGroup(key=OTHERS, cost=cost_of(connection.execute(sums).one())))
    return tuple(groups)


def _cache_hit_rate(total: Cost) -> float | None:
    """The Messages API counts cached input apart: all input is the sum of the three kinds."""
    everything = total.input_tokens + total.cache_read_tokens + total.cache_write_tokens
    return total.cache_read_tokens / everything if everything else None


def _sdk_usd(connection: Connection, session_id: str) -> float | None:
    query = (
        select(turns.c.sdk_cost_usd)
        .where(turns.c.session_id == session_id, turns.c.sdk_cost_usd.is_not(None))
        .order_by(turns.c.number.desc())
        .limit(1)
    )
    return connection.execute(query).scalar()


def _sdk_note(sdk_usd: float | None, total: Cost) -> str:
    """Why the SDK's figure is another one than the ledger's; empty where they agree."""
    if sdk_usd is None:
        return ""
    difference = sdk_usd - (total.usd - total.sandbox_usd)
    if abs(difference) < 0.00005:
        return ""
    return (
        f"The SDK's figure is {'higher' if difference > 0 else 'lower'} by ${abs(difference):.4f}. It runs on over all "
        "turns of a conversation, and in a fork it begins with what the original had cost: never add it up. It also "
        "leaves out what it did not see to its end, such as retries, cut streams and interrupted turns, and has prices "
        "of its own. The ledger meters each request once: its figures count."
    )


def _note(total: Cost, request: CostRequest) -> str:
    notes = []
    if total.unpriced_requests:
        notes.append(f"{total.unpriced_requests} requests used a model without a known price; they are not in usd.")
    if request.group_by == "label":
        notes.append("A session with several labels counts in the group of each.")
    return " ".join(notes)
