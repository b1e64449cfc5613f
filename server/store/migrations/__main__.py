"""Draft a migration, for developers: ``python -m server.store.migrations "what it does"``.

Compares :mod:`server.store.tables` with a scratch database to which all migrations were applied, and writes the
difference as the next file in ``versions/``. Read it, mend it, then raise ``SCHEMA_REVISION``.
"""

from __future__ import annotations

import sys

import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory

from server.store.schema import migration_config


def draft(message: str) -> None:
    """Write the next migration."""
    with sqlalchemy.create_engine("sqlite://").begin() as connection:
        config = migration_config(connection)
        command.upgrade(config, "head")
        count = len(list(ScriptDirectory.from_config(config).walk_revisions()))
        command.revision(config, message, autogenerate=True, rev_id=f"{count + 1:04}")


if __name__ == "__main__":
    draft(sys.argv[1])
