"""Real databases for the store: a SQLite file for each test, and Postgres where a server is offered.

``ROOKERY_TEST_POSTGRES_URL=postgresql://USER@HOST/NAME`` runs the whole folder on Postgres too, each test in a
database of its own that is made and dropped over that connection.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from server.store import Store, open_store
from tests.unit.store.records import SteppingClock

POSTGRES = os.environ.get("ROOKERY_TEST_POSTGRES_URL")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'home' / 'rookery.db'}"


@pytest.fixture(params=["sqlite", "postgres"] if POSTGRES else ["sqlite"])
async def url(request: pytest.FixtureRequest, sqlite_url: str) -> AsyncIterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield sqlite_url
        return
    from sqlalchemy.ext.asyncio import create_async_engine

    server = make_url(str(POSTGRES)).set(drivername="postgresql+asyncpg")
    name = f"rookery_test_{secrets.token_hex(6)}"
    admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
    try:
        async with admin.connect() as connection:
            await connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield server.set(database=name).render_as_string(hide_password=False)
        async with admin.connect() as connection:
            await connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.dispose()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An open store in which every look at the clock takes a second."""
    async with open_store(url, clock=SteppingClock()) as opened:
        yield opened
