"""Reports of costs: of a session, of a session with all that descends from it, or of all the principal's."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, select

from server.models import NANO_USD, Cost, SessionRecord
from server.requests import CostRequest
from server.store.ledger import SUMS, cost_of, totals
from server.store.room import Room, not_found, record
from server.store.tables import cost_totals, session_labels, sessions, turns
from server.views import CostGroup, CostReport

MAX_GROUPS: Final = 200
"""Groups in one report. The cheaper rest is summed up in one more group, so that groups still add up."""

OTHERS: Final = "(others)"
UNLABELLED: Final = "(no label)"


class Costs(Room):
    """Reports of costs."""

    async def cost_report(self, principal: str, request: CostRequest) -> CostReport:
        """Sums of the ledger in the scope asked for, by group if asked for.

        What a deleted session cost is kept, and can be asked for by its id. A session with several labels counts in
        the group of each, so those groups can add up to more than the total.

        Raises:
            RookeryError: ``session_not_found``.
        """
        return await self._database.read(_report, principal, request)


def _report(connection: Connection, principal: str, request: CostRequest) -> CostReport:
    scope: list[ColumnElement[bool]] = [cost_totals.c.principal == principal]
    session: SessionRecord | None = None
    if request.session_id is not None:
        session = _session(connection, principal, request.session_id)
        scope.append(_within(request.session_id, session, tree=request.tree))
    total = cost_of(connection.execute(totals(*scope)).one())
    budget = None if session is None or session.budget_nano_usd is None else session.budget_nano_usd / NANO_USD
    groups = () if request.group_by is None else _groups(connection, scope, request.group_by)
    return CostReport(
        scope="principal" if request.session_id is None else "tree" if request.tree else "session",
        session_id=request.session_id,
        total=total,
        cache_hit_rate=_cache_hit_rate(total),
        budget_usd=budget,
        budget_remaining_usd=None if budget is None else max(0.0, budget - total.usd),
        groups=groups,
        group_by=request.group_by,
        sdk_usd=_sdk_usd(connection, request.session_id) if request.session_id and not request.tree else None,
        note=_note(total, request),
    )


def _session(connection: Connection, principal: str, session_id: str) -> SessionRecord | None:
    """The session; None when it was deleted, but its costs are still known."""
    row = connection.execute(
        select(sessions).where(sessions.c.id == session_id, sessions.c.principal == principal)
    ).first()
    if row is not None:
        return record(SessionRecord, row)
    kept = select(1).where(cost_totals.c.session_id == session_id, cost_totals.c.principal == principal)
    if connection.execute(kept.limit(1)).first() is None:
        raise not_found()
    return None


def _within(session_id: str, session: SessionRecord | None, *, tree: bool) -> ColumnElement[bool]:
    if not tree:
        return cost_totals.c.session_id == session_id
    if session is None or session.root_id == session_id:
        # A root's tree is known by the ledger itself, also where a branch was deleted.
        return (cost_totals.c.root_id == session_id) | (cost_totals.c.session_id == session_id)
    branch = select(sessions.c.id).where(sessions.c.id == session_id).cte("branch", recursive=True)
    branch = branch.union(select(sessions.c.id).join(branch, sessions.c.parent_id == branch.c.id))
    return cost_totals.c.session_id.in_(select(branch.c.id))


def _groups(connection: Connection, scope: list[ColumnElement[bool]], group_by: str) -> tuple[CostGroup, ...]:
    query: Any
    if group_by == "label":
        key: ColumnElement[Any] = func.coalesce(session_labels.c.key + "=" + session_labels.c.value, UNLABELLED)
        query = totals(*scope, by=[key.label("key")]).select_from(
            cost_totals.outerjoin(session_labels, session_labels.c.session_id == cost_totals.c.session_id)
        )
    else:
        key = {"session": cost_totals.c.session_id, "model": cost_totals.c.model, "day": cost_totals.c.day}[group_by]
        query = totals(*scope, by=[key.label("key")])
    order = key.desc() if group_by == "day" else func.sum(cost_totals.c.nano_usd).desc()
    rows = connection.execute(query.order_by(order, key)).all()
    groups = [CostGroup(key=row.key, cost=cost_of(row)) for row in rows[:MAX_GROUPS]]
    rest = rows[MAX_GROUPS:]
    if rest:
        sums = {name: sum(int(row._mapping[name]) for row in rest) for name in SUMS}
        groups.append(CostGroup(key=OTHERS, cost=Cost(usd=sums.pop("nano_usd") / NANO_USD, **sums)))
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


def _note(total: Cost, request: CostRequest) -> str:
    notes = []
    if total.unpriced_requests:
        notes.append(f"{total.unpriced_requests} requests used a model without a known price; they are not in usd.")
    if request.group_by == "label":
        notes.append("A session with several labels counts in the group of each.")
    return " ".join(notes)
