"""Bringing a database to the schema of this code, once, whoever else starts at the same time.

The usual case, a database that is up to date, costs one SELECT: Alembic is imported only when there is something to
migrate. A new database is made from :data:`server.store.tables.metadata` in one step; a test proves that this equals
all migrations applied. Everything happens in one transaction under the database's own lock: an interrupted migration
leaves the old schema, and the second of two servers finds the work done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect

from server.store.database import PostgresDatabase, SqliteDatabase
from server.store.failures import storage_unavailable
from server.store.tables import SCHEMA_REVISION, metadata

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS: Final = Path(__file__).parent / "migrations"

VERSION_TABLE: Final = "alembic_version"


async def ensure_schema(database: SqliteDatabase | PostgresDatabase) -> None:
    """Create or migrate the schema where needed.

    Raises:
        RookeryError: ``storage_unavailable`` when the database is newer than this code, is somebody else's, or
            cannot be used.
    """
    if await database.read(stored_revision) != SCHEMA_REVISION:
        await database.migrate(_bring_up_to_date)


def stored_revision(connection: Connection) -> str | None:
    """The revision that the database says it has; None when it was never prepared."""
    if connection.dialect.name == "sqlite":
        names = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")
        if names.first() is None:
            return None
    elif not inspect(connection).has_table(VERSION_TABLE):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def _bring_up_to_date(connection: Connection) -> None:
    # Looked at again under the lock: another process may just have done it.
    revision = stored_revision(connection)
    if revision == SCHEMA_REVISION:
        return
    if revision is None:
        _create(connection)
    else:
        upgrade(connection, revision)
    _check_foreign_keys(connection)


def _create(connection: Connection) -> None:
    if set(inspect(connection).get_table_names()) & set(metadata.tables):
        raise storage_unavailable(
            "The database holds tables that Rookery did not make. Point ROOKERY_DATABASE_URL to an empty database.",
            retryable=False,
        )
    metadata.create_all(connection, checkfirst=False)
    connection.exec_driver_sql(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.exec_driver_sql(f"INSERT INTO alembic_version (version_num) VALUES ('{SCHEMA_REVISION}')")  # noqa: S608 - a constant of ours


def upgrade(connection: Connection, revision: str | None) -> None:
    """Apply the migrations that are missing after ``revision``.

    Raises:
        RookeryError: ``storage_unavailable`` when this code does not know ``revision``.
    """
    from alembic import command
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = migration_config(connection)
    try:
        ScriptDirectory.from_config(config).get_revision(revision or "base")
    except CommandError as error:
        raise storage_unavailable(
            "The database was written by a newer Rookery. Upgrade this one, or use another ROOKERY_HOME.",
            detail=f"unknown schema revision {revision!r}",
            retryable=False,
        ) from error
    command.upgrade(config, "head")


def migration_config(connection: Connection) -> Config:
    """What Alembic needs to know: where the migrations lie, and the connection for them to run on."""
    from alembic.config import Config

    config = Config()
    # A percent sign in a path would be read as an interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _check_foreign_keys(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        orphan = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if orphan is not None:
            raise storage_unavailable(
                "A migration of the database failed and was undone. Report it, and go back to the former version.",
                detail=f"orphan row in {orphan[0]}",
                retryable=False,
            )
