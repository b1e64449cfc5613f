"""What Alembic runs: the migrations on the connection that server/store/schema.py hands over.

``python -m server.store.migrations "what it does"`` drafts a new one.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy.types import TypeDecorator

from server.store.tables import metadata


def _plain_type(kind: str, item: Any, _autogenerate: Any) -> str | Literal[False]:
    """A migration is frozen, so it names a column's type in SQLAlchemy's words, never by a class of ours."""
    return f"sa.{item.impl!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters a table by building it anew.
    render_as_batch=True,
    compare_type=True,
    render_item=_plain_type,
)

# The caller holds the transaction and the lock, and commits.
context.run_migrations()
