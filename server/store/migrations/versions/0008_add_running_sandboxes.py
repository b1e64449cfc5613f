"""Remember which sandboxes run, so that a dead server's last stretch of their time is charged"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "running_sandboxes",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("line_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("root_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("nano_usd_per_s", sa.BigInteger(), nullable=False),
        sa.Column("lasts_s", sa.BigInteger(), nullable=False),
        sa.Column("ends_by", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_running_sandboxes")),
    )


def downgrade() -> None:
    raise NotImplementedError("a database is never taken back to an older schema")
