"""The schema: one for all ways to get it, brought up once, never half, and never by an older program."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, Table, inspect

from server.errors import RookeryError
from server.models import (
    ApprovalRecord,
    CheckpointRecord,
    Command,
    Event,
    LedgerEntry,
    RunningSandbox,
    SandboxTime,
    ServerRecord,
    SessionRecord,
    TurnRecord,
    Usage,
)
from server.store import open_store, schema, tables
from server.store.database import open_database
from server.store.schema import MIGRATIONS, upgrade
from server.store.tables import SCHEMA_REVISION, metadata
from tests.unit.store.records import ALICE, started


def shape(connection: Connection) -> dict[str, Any]:
    """All that a database says about its tables, in an order that does not depend on how they were made."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(map(repr, inspector.get_foreign_keys(table))),
            "unique": sorted(map(repr, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(repr, inspector.get_indexes(table))),
        }
        for table in inspector.get_table_names()
    }


async def test_the_schema_at_once_equals_all_migrations_applied(url: str, tmp_path: Path) -> None:
    async with open_store(url) as store:
        at_once = await store._database.read(shape)

    def rebuild(connection: Connection) -> dict[str, Any]:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        upgrade(connection, None)
        return shape(connection)

    async with open_database(url) as database:
        by_migrations = await database.migrate(rebuild)

    assert set(at_once) == {*metadata.tables, "alembic_version"}
    assert by_migrations == at_once


async def test_the_newest_migration_is_the_one_that_the_code_knows(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    async with open_store(url) as store:
        differences = await store._database.read(
            lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
        )

    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [SCHEMA_REVISION]
    assert differences == []


@pytest.mark.parametrize(
    ("table", "record", "only_in_table", "only_in_record"),
    [
        (tables.sessions, SessionRecord, set(), set()),
        (tables.turns, TurnRecord, set(), set()),
        (tables.events, Event, set(), set()),
        (tables.approvals, ApprovalRecord, set(), set()),
        (tables.checkpoints, CheckpointRecord, set(), set()),
        (tables.servers, ServerRecord, set(), {"silent_for"}),
        (tables.ledger, LedgerEntry, set(Usage.model_fields), {"usage"}),
        (tables.sandbox_time, SandboxTime, set(), set()),
        (tables.running_sandboxes, RunningSandbox, {"ends_by"}, set()),
        (tables.commands, Command, {"number", "taken_by", "taken_at", "finished_at", "result"}, set()),
    ],
)
def test_every_field_of_a_record_has_its_column(
    table: Table, record: type[BaseModel], only_in_table: set[str], only_in_record: set[str]
) -> None:
    assert set(table.columns.keys()) - only_in_table == set(record.model_fields) - only_in_record
    assert only_in_table <= set(table.columns.keys())


async def test_opening_a_store_that_is_up_to_date_imports_no_alembic_and_no_asyncio_driver(sqlite_url: str) -> None:
    code = (
        "import anyio, sys\n"
        "from server.store import open_store\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]): pass\n"
        "anyio.run(main)\n"
        "assert 'alembic' not in sys.modules and 'sqlalchemy.ext.asyncio' not in sys.modules\n"
    )

    # The first makes the database, the second finds it up to date.
    for _ in range(2):
        await anyio.run_process([sys.executable, "-c", code, sqlite_url])


async def test_the_database_and_its_directory_are_for_this_user_alone(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"

    async with open_store(f"sqlite+aiosqlite:///{home / 'rookery.db'}") as store:
        await started(store, "s1")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}

    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert modes == {"rookery.db": 0o600, "rookery.db-wal": 0o600, "rookery.db-shm": 0o600}


async def test_many_servers_open_a_new_store_at_the_same_time(url: str) -> None:
    command = [sys.executable, "-m", "tests.unit.store.writer", url, "open"]

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(anyio.run_process, command)

    async with open_store(url) as store:
        await started(store, "s1")


@pytest.mark.parametrize("bad", ["mysql://host/db", "nonsense", "sqlite://", "sqlite:///:memory:", "sqlite:///a?b=c"])
async def test_a_url_that_leads_nowhere_is_refused_with_the_remedy(bad: str) -> None:
    with pytest.raises(RookeryError, match=r"storage_unavailable: .*ROOKERY_DATABASE_URL") as refused:
        async with open_store(bad):
            pass

    assert not refused.value.retryable


async def test_c08_a_schema_newer_than_the_code_is_refused_and_left_alone(url: str) -> None:
    """C08: a store that a newer program wrote must not be touched by an older one."""
    async with open_store(url) as store:
        await started(store, "s1")
        await store._database.write(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(RookeryError, match=r"storage_unavailable: .*newer Rookery. Upgrade") as refused:
        async with open_store(url):
            pass

    assert not refused.value.retryable
    async with open_database(url) as database:
        assert await database.read(schema.stored_revision) == "9999"
        rows = await database.read(lambda c: c.exec_driver_sql("SELECT id FROM sessions").scalars().all())
        assert rows == ["s1"]


async def test_c08_a_database_of_somebody_else_is_refused(url: str) -> None:
    """C08: a file with tables of the same names, but without a revision, is not ours to change."""
    async with open_database(url) as database:
        await database.write(lambda c: c.exec_driver_sql("CREATE TABLE sessions (id INTEGER)"))

    with pytest.raises(RookeryError, match=r"storage_unavailable: .*did not make"):
        async with open_store(url):
            pass


NEWER = f"{int(SCHEMA_REVISION) + 1:04}"
"""The revision after ours."""

NEXT = """
import os, signal
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None


def upgrade():
    op.create_table("novelties", sa.Column("id", sa.Integer(), primary_key=True))
    with op.batch_alter_table("sessions") as batch:
        batch.add_column(sa.Column("novelty", sa.Text()))
        batch.alter_column("title", nullable=True)
    {ending}
"""


def next_migration(ending: str) -> str:
    return NEXT.format(revision=NEWER, down_revision=SCHEMA_REVISION, ending=ending)


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program with one migration more than ours; the returned file is to hold it."""
    copied = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "MIGRATIONS", copied)
    monkeypatch.setattr(schema, "SCHEMA_REVISION", NEWER)
    yield copied / "versions" / f"{NEWER}_next.py"


async def test_a_migration_keeps_what_was_stored(url: str, newer: Path) -> None:
    newer.write_text(next_migration("pass"))
    with pytest.MonkeyPatch.context() as older:
        older.setattr(schema, "SCHEMA_REVISION", SCHEMA_REVISION)
        async with open_store(url) as store:
            await started(store, "s1", labels={"a": "b"})

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(open_and_close, url)

    async with open_store(url) as store:
        assert await store._database.read(schema.stored_revision) == NEWER
        assert (await store.session(ALICE, "s1")).labels == {"a": "b"}
        # Building a table anew must not have cascaded into what refers to it.
        assert [turn.number for turn in await store.turns("s1")] == [1]
        assert await store.last_seq("s1") == 2


async def test_c08_a_migration_that_fails_leaves_the_old_schema(url: str, newer: Path) -> None:
    """C08: migration interrupted by an error."""
    newer.write_text(next_migration('op.execute("INSERT INTO nowhere VALUES (1)")'))
    async with open_database(url) as database:
        await database.migrate(lambda connection: upgrade_to_present(connection))

    with pytest.raises(RookeryError):
        async with open_store(url):
            pass

    async with open_database(url) as database:
        assert await database.read(schema.stored_revision) == SCHEMA_REVISION
        assert "novelties" not in await database.read(lambda c: inspect(c).get_table_names())


async def test_c08_a_migration_whose_process_is_killed_leaves_the_old_schema(sqlite_url: str, newer: Path) -> None:
    """C08: migration interrupted by kill -9; the old program works on, the new one tries again."""
    newer.write_text(next_migration("os.kill(os.getpid(), signal.SIGKILL)"))
    async with open_database(sqlite_url) as database:
        await database.migrate(lambda connection: upgrade_to_present(connection))
    code = (
        "import anyio, sys\n"
        "from pathlib import Path\n"
        "from server.store import open_store, schema\n"
        f"schema.MIGRATIONS, schema.SCHEMA_REVISION = Path(sys.argv[2]), '{NEWER}'\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]): pass\n"
        "anyio.run(main)\n"
    )

    with pytest.raises(subprocess.CalledProcessError) as died:
        await anyio.run_process([sys.executable, "-c", code, sqlite_url, str(schema.MIGRATIONS)])

    assert died.value.returncode == -9
    path = sqlite_url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "novelties" not in names
    newer.write_text(next_migration("pass"))
    async with open_store(sqlite_url) as store:
        assert await store._database.read(schema.stored_revision) == NEWER


def upgrade_to_present(connection: Connection) -> None:
    from alembic import command

    command.upgrade(schema.migration_config(connection), SCHEMA_REVISION)


async def open_and_close(url: str) -> None:
    async with open_store(url):
        pass


def test_the_migrations_name_no_class_of_ours() -> None:
    # They are history: a later change of the classes must not change them.
    for migration in (MIGRATIONS / "versions").glob("*.py"):
        assert "import server" not in migration.read_text() and "from server" not in migration.read_text()
