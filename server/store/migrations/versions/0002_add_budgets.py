"""Add budgets"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budget_accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("spent_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("spent_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_accounts")),
    )
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("root_id", sa.String(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("priced", sa.Boolean(), nullable=False),
        sa.Column("accounts", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservations")),
    )
    with op.batch_alter_table("reservations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reservations_owner"), ["owner"], unique=False)
    # What was spent before there were accounts. Nothing was spawned by an agent then, so each session spent for
    # itself alone.
    for key, table in (
        ("'session:' || session_id", "cost_totals"),
        ("'tree:' || root_id", "cost_totals"),
        ("'principal:' || principal", "principal_totals"),
        ("'day:' || day || ':' || principal", "principal_totals"),
    ):
        op.execute(
            f"""
            INSERT INTO budget_accounts (id, spent_nano_usd, reserved_nano_usd, spent_tokens, reserved_tokens)
            SELECT {key}, SUM(nano_usd), 0,
                SUM(input_tokens + output_tokens + cache_read_tokens + cache_write_tokens), 0
            FROM {table} GROUP BY {key}
            """  # noqa: S608 - both words are the constants above
        )


def downgrade() -> None:
    raise NotImplementedError("a database is never taken back to an older schema")
