"""Remember how far the output of an agent was taken that may outlive its server"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("counters", sa.Column("agent_stream", sa.Text(), nullable=True))
    for name in ("agent_heard", "agent_settled"):
        op.add_column("counters", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("a database is never taken back to an older schema")
