"""Add token caps, allotments of children, sandbox time and fallbacks"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LATER = {
    "budget_accounts": ("allotted_nano_usd", "allotted_tokens", "held_nano_usd", "held_tokens", "warned"),
    "cost_totals": ("sandbox_ms", "sandbox_nano_usd"),
    "principal_totals": ("sandbox_ms", "sandbox_nano_usd"),
}
"""Numbers that begin with zero. No session had children of its own before."""


def upgrade() -> None:
    op.add_column("sessions", sa.Column("budget_tokens", sa.BigInteger(), nullable=True))
    op.add_column("ledger", sa.Column("fallback_from", sa.Text(), nullable=True))
    op.add_column("reservations", sa.Column("drawn", sa.Text(), nullable=True))
    for table, names in LATER.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "sandbox_time",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("root_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("milliseconds", sa.BigInteger(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_time")),
    )
    with op.batch_alter_table("sandbox_time", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sandbox_time_session_id"), ["session_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a database is never taken back to an older schema")
