"""All tables. What the migrations build must equal this, which a test holds (tests/unit/store/test_schema.py).

Everything that belongs to a session goes when its row goes, except ``ledger`` and its sums, and ``decisions``: money
and the record of what was allowed are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    false,
)

from server.store.columns import Json, UtcTime, Words

SCHEMA_REVISION: Final = "0008"
"""The newest migration. A store of this revision is opened without importing Alembic."""

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _session_key() -> Column[str]:
    return Column("session_id", String, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)


def _session_reference() -> Column[str]:
    return Column("session_id", String, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False)


sessions = Table(
    "sessions",
    metadata,
    Column("id", String, primary_key=True),
    Column("principal", Words, nullable=False),
    Column("root_id", String, nullable=False),
    Column("parent_id", String),
    Column("forked_from", String),
    Column("title", Words, nullable=False),
    Column("labels", Json, nullable=False),
    Column("state", String, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("model", Words),
    Column("system_prompt", Words),
    Column("policy", Words, nullable=False),
    Column("tools", Json),
    Column("max_turns", Integer),
    Column("output_schema", Json),
    Column("budget_nano_usd", BigInteger),
    Column("workspace", Json),
    Column("sandbox_kind", String, nullable=False),
    Column("sandbox", Json),
    Column("transcript_cuts", Json, nullable=False),
    Column("pending_notice", Words),
    Column("owner", String),
    Column("resident", Boolean, nullable=False),
    Column("request_id", String),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("parent_policies", Json),
    Column("budget_tokens", BigInteger),
    Column("token_id", String),
    UniqueConstraint("principal", "request_id"),
    Index(None, "principal", "created_at", "id"),
    Index(None, "owner"),
    Index(None, "state"),
    Index(None, "parent_id"),
    Index(None, "ended_at"),
)

counters = Table(
    "counters",
    metadata,
    _session_key(),
    Column("last_seq", BigInteger, nullable=False, default=0),
    Column("transcript_length", BigInteger, nullable=False, default=0),
    Column("transcript_bytes", BigInteger, nullable=False, default=0),
    Column("agent_stream", Text, nullable=True),
    Column("agent_heard", BigInteger, nullable=False, default=0, server_default="0"),
    Column("agent_settled", BigInteger, nullable=False, default=0, server_default="0"),
)
"""What grows with every event and transcript entry, apart from the wide session row."""

session_labels = Table(
    "session_labels",
    metadata,
    _session_key(),
    Column("key", Words, primary_key=True),
    Column("value", Words, nullable=False),
    Index(None, "key", "value"),
)

turns = Table(
    "turns",
    metadata,
    _session_key(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("origin", String, nullable=False),
    Column("prompt", Words, nullable=False),
    Column("request_id", String),
    Column("stop_reason", String),
    Column("text", Words, nullable=False),
    Column("structured_output", Json),
    Column("error", Json),
    Column("denials", Integer, nullable=False),
    Column("changed_files", Json, nullable=False),
    Column("checkpoint_id", String),
    Column("end_checkpoint_id", String),
    Column("sdk_cost_usd", Float),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    UniqueConstraint("session_id", "request_id"),
)

events = Table(
    "events",
    metadata,
    _session_key(),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("data", Json, nullable=False),
)

transcript_entries = Table(
    "transcript_entries",
    metadata,
    _session_key(),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("subpath", String, nullable=False),
    Column("uuid", Words),
    Column("size", Integer, nullable=False),
    Column("entry", Text, nullable=False),
    UniqueConstraint("session_id", "subpath", "uuid"),
    Index(None, "session_id", "subpath", "position"),
)
"""The CLI's own transcript. ``position`` counts over main and subagent transcripts together, so that one number
cuts all of them at the same moment. ``subpath`` is empty for the main one; ``entry`` is JSON as it came."""

ledger = Table(
    "ledger",
    metadata,
    Column("id", String, primary_key=True),
    Column("principal", Words, nullable=False),
    Column("session_id", String, nullable=False),
    Column("root_id", String, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("model", Words, nullable=False),
    Column("upstream_request_id", Words),
    Column("status", Integer, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("error", Words),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cache_write_1h_tokens", BigInteger, nullable=False),
    Column("server_tool_requests", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("nano_usd", BigInteger),
    Column("price_source", Words),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("fallback_from", Words),
    Index(None, "session_id", "turn"),
)

sandbox_time = Table(
    "sandbox_time",
    metadata,
    Column("id", String, primary_key=True),
    Column("principal", Words, nullable=False),
    Column("session_id", String, nullable=False),
    Column("root_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
    Column("nano_usd", BigInteger, nullable=False),
    Index(None, "session_id"),
)
"""The ledger's lines for sandboxes: one for each stretch of time that a session had one running."""

running_sandboxes = Table(
    "running_sandboxes",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("line_id", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("principal", Words, nullable=False),
    Column("root_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("since", UtcTime, nullable=False),
    Column("nano_usd_per_s", BigInteger, nullable=False),
    Column("lasts_s", BigInteger, nullable=False),
    Column("ends_by", UtcTime),
)
"""Sandboxes whose time is being metered; ``since`` and ``line_id`` move on in the transaction that writes a line, and
the row goes with the last one. ``ends_by``, once the server is dead: the latest moment until which it is charged."""

SUMS: Final = (
    "nano_usd",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "requests",
    "failures",
    "unpriced_requests",
    "sandbox_ms",
    "sandbox_nano_usd",
)
"""What the running sums of the ledger add up. ``nano_usd`` is for requests and sandboxes together."""


def _later(name: str) -> Column[int]:
    """A number that was added to a table when it had rows."""
    return Column(name, BigInteger, nullable=False, server_default="0")


def _sum(name: str) -> Column[int]:
    return _later(name) if name.startswith("sandbox_") else Column(name, BigInteger, nullable=False)


cost_totals = Table(
    "cost_totals",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("model", Words, primary_key=True),
    Column("day", String, primary_key=True),
    Column("principal", Words, nullable=False),
    Column("root_id", String, nullable=False),
    *(_sum(name) for name in SUMS),
    Index(None, "principal"),
    Index(None, "root_id"),
)
"""Running sums of the ledger by session, model and UTC day (``2026-11-23``) of the request's start. Sandboxes stand
among the models as ``sandbox KIND``."""

principal_totals = Table(
    "principal_totals",
    metadata,
    Column("principal", Words, primary_key=True),
    Column("model", Words, primary_key=True),
    Column("day", String, primary_key=True),
    *(_sum(name) for name in SUMS),
)
"""The same over all sessions of a principal, so that a report costs the same with one session and with thousands."""

budget_accounts = Table(
    "budget_accounts",
    metadata,
    Column("id", Words, primary_key=True),
    Column("spent_nano_usd", BigInteger, nullable=False),
    Column("reserved_nano_usd", BigInteger, nullable=False),
    Column("spent_tokens", BigInteger, nullable=False),
    Column("reserved_tokens", BigInteger, nullable=False),
    _later("allotted_nano_usd"),
    _later("allotted_tokens"),
    _later("held_nano_usd"),
    _later("held_tokens"),
    _later("warned"),
)
"""What each account of :mod:`server.budgets` has spent and reserved; the id is ``scope:key``. Caps are not here.

``allotted`` is what is set aside for spawned children, the sum of what each of them still has as ``held``; ``warned``
is the last level of its cap, in percent, that was warned of at a reservation."""

reservations = Table(
    "reservations",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("principal", Words, nullable=False),
    Column("session_id", String, nullable=False),
    Column("root_id", String, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("model", Words, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("nano_usd", BigInteger, nullable=False),
    Column("priced", Boolean, nullable=False),
    Column("accounts", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("drawn", Json),
    Index(None, "owner"),
)
"""Model requests under way; ``drawn`` is what came from the allotments of spawned children.
A row goes in the transaction that writes the request's ledger entry."""

approvals = Table(
    "approvals",
    metadata,
    Column("id", String, primary_key=True),
    _session_reference(),
    Column("principal", Words, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("tool_use_id", Words, nullable=False),
    Column("tool", Words, nullable=False),
    Column("input_digest", String, nullable=False),
    Column("summary", Words, nullable=False),
    Column("input", Json, nullable=False),
    Column("rule", Words, nullable=False),
    Column("status", String, nullable=False),
    Column("note", Words, nullable=False),
    Column("decided_by", Words),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("decided_at", UtcTime),
    Column("set_aside", Boolean, nullable=False, server_default=false()),
    Index(None, "principal", "status"),
    Index(None, "session_id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String, primary_key=True),
    _session_reference(),
    Column("principal", Words, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("label", Words, nullable=False),
    Column("tree", String, nullable=False),
    Column("files", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("transcript_length", BigInteger, nullable=False),
    Column("transcript_cuts", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "session_id", "created_at"),
)

servers = Table(
    "servers",
    metadata,
    Column("id", String, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("host", Words, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("heartbeat_at", UtcTime, nullable=False),
)

commands = Table(
    "commands",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("payload", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("taken_by", String),
    Column("taken_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("result", Json),
    UniqueConstraint("id"),
    Index(None, "session_id", "finished_at"),
    sqlite_autoincrement=True,
)
"""Inbox of sessions that another process owns; ``number`` is the order in which they were sent. Not bound to the
session's row, because the answer to "delete this session" must outlive it."""

decisions = Table(
    "decisions",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("principal", Words, nullable=False),
    Column("session_id", String, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("tool_use_id", Words, nullable=False),
    Column("tool", Words, nullable=False),
    Column("policy", Words, nullable=False),
    Column("policy_digest", String, nullable=False),
    Column("request_digest", String, nullable=False),
    Column("decision", String, nullable=False),
    Column("rule", Words),
    Column("because", Words, nullable=False),
    Column("matched", Json, nullable=False),
    Column("rewritten", Boolean, nullable=False),
    Column("decider", String, nullable=False),
    Column("decided_by", Words),
    Column("latency_us", BigInteger, nullable=False),
    Index(None, "principal", "at"),
    Index(None, "session_id", "at"),
)
"""The audit: one row for each decision on a tool call. Rows are added and never changed or taken away."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", Words, nullable=False),
    Column("principal", Words, nullable=False),
    Column("digest", String, nullable=False),
    Column("scopes", Json, nullable=False),
    Column("budget_nano_usd", BigInteger),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    Column("used_at", UtcTime),
    UniqueConstraint("digest"),
)
"""API tokens; of the secret itself only the SHA-256."""

APPEND_ONLY: Final = {
    "sqlite": tuple(
        f"CREATE TRIGGER decisions_no_{verb} BEFORE {verb.upper()} ON decisions "
        "BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END"
        for verb in ("update", "delete")
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION decisions_only_added() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'decisions are only added'; END $$",
        "CREATE TRIGGER decisions_no_change BEFORE UPDATE OR DELETE ON decisions "
        "FOR EACH ROW EXECUTE FUNCTION decisions_only_added()",
    ),
}
"""What makes the database itself refuse to change the audit, for each kind of database."""


def _only_on(dialect: str, statement: str) -> Callable[..., None]:
    """Runs a statement on one kind of database, when a table was created."""

    def create(_table: Table, connection: Connection, **_options: object) -> None:
        if connection.dialect.name == dialect:
            connection.exec_driver_sql(statement)

    return create


for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(decisions, "after_create", _only_on(_dialect, _statement))
