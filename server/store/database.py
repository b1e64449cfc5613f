"""The database under the store: :meth:`Database.read`, :meth:`Database.write`, and for what is asked all the time
:meth:`Database.glance`.

All take a plain function of a SQLAlchemy connection and run it as one transaction, all or nothing. On SQLite the
function runs in a worker thread: one hop for a whole transaction, where an asynchronous driver hops three or four
times for each statement (measured: four times slower), and a cancelled caller can never tear a transaction in two,
for the thread always finishes it. A glance spares that hop too. On Postgres the same function runs over asyncpg.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import sqlalchemy
from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from server.errors import ErrorCode, RookeryError
from server.store.failures import storage_unavailable, translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_S: Final = 5.0
"""How long a statement waits for another process's lock before it gives up."""

QUEUE_TIMEOUT_S: Final = 60.0
"""How long a transaction waits for those of its own process: a few that each ran into the timeout above, or many on a
machine on which dozens of agents start at once and leave this process little time."""

_READERS: Final = 4
"""SQLite connections that read; readers wait for nobody in WAL mode. One more connection writes."""

_JOURNAL_BYTES: Final = 64 * 1024 * 1024
"""The write-ahead log shrinks back to this after a large transaction."""

_SQLITE_NEEDED: Final = (3, 35)
"""The first version that knows RETURNING."""

_ATTEMPTS: Final = 3
"""How often a Postgres transaction is tried that lost against another: deadlock or serialization failure."""

_LOST_RACE: Final = frozenset({"40001", "40P01"})


class Database(Protocol):
    """What the rooms of the store need of the database."""

    async def read(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction that sees one moment and changes nothing.

        Raises:
            RookeryError: ``storage_unavailable``, and what ``body`` raises.
        """
        ...

    async def glance(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As :meth:`read`, for a ``body`` that reads a few rows by their keys, and is asked for often."""
        ...

    async def write(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction that commits when it returns, and leaves nothing behind when it raises.

        ``body`` must be safe to run again from the start: Postgres may ask for that.

        Raises:
            RookeryError: ``storage_unavailable``, and what ``body`` raises.
        """
        ...


class SqliteDatabase:
    """One SQLite file in WAL mode: many readers, one writer, other processes at the same time.

    Writers begin with ``BEGIN IMMEDIATE``: a transaction that reads first and then wants to write would otherwise
    fail at once with SQLITE_BUSY_SNAPSHOT when another process wrote in between, busy timeout or not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _Connections(path, begin="BEGIN IMMEDIATE", count=1)
        self._readers = _Connections(path, begin="BEGIN", count=_READERS, pragmas={"query_only": "ON"})
        at_once = {"query_only": "ON", "busy_timeout": "0"}
        self._glances = _Connections(path, begin="BEGIN", count=1, pragmas=at_once)

    async def read(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._readers.run(lambda connection: body(connection, *args, **kwargs))

    async def glance(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        # On the event loop itself: the way to a thread and back takes five times as long as the look (measured). It
        # waits for no lock: what is locked, as while another process recovers the log, is read by way of a thread.
        await anyio.lowlevel.checkpoint()
        try:
            return self._glances.transact(lambda connection: body(connection, *args, **kwargs))
        except RookeryError as error:
            if error.code is not ErrorCode.STORAGE_UNAVAILABLE:
                raise
        return await self.read(body, *args, **kwargs)

    async def write(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._writer.run(lambda connection: body(connection, *args, **kwargs))

    async def migrate(self, body: Callable[[Connection], T]) -> T:
        """As :meth:`write`, with foreign keys off (a rebuilt table must not cascade) and a longer patience."""
        pragmas = {"foreign_keys": "OFF", "busy_timeout": "60000"}
        connections = _Connections(self._path, begin="BEGIN IMMEDIATE", count=1, pragmas=pragmas)
        try:
            return await connections.run(body)
        finally:
            connections.close()

    def close(self) -> None:
        self._glances.close()
        self._readers.close()
        self._writer.close()


class _Connections:
    """Connections of one kind, which stay open and are lent to one transaction at a time.

    Taking one from SQLAlchemy's pool for each transaction, and putting it back, takes longer than the transaction.
    """

    def __init__(self, path: Path, *, begin: str, count: int, pragmas: Mapping[str, str] | None = None) -> None:
        self._engine = _sqlite_engine(path, begin=begin, size=count, pragmas=pragmas or {})
        self._count = count
        self._closed = False
        self._slots = anyio.CapacityLimiter(count)
        # A thread takes one and gives one back: a connection, or None for one that is to be opened. The limiter alone
        # does not do: it counts callers, and one that asyncio cancels is gone before its thread is.
        self._idle: LifoQueue[Connection | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    async def run(self, body: Callable[[Connection], T]) -> T:
        """One transaction in a worker thread."""
        # A running thread is shielded by anyio, so this bounds the wait for a free slot, and nothing else.
        with anyio.move_on_after(QUEUE_TIMEOUT_S):
            return await anyio.to_thread.run_sync(self.transact, body, limiter=self._slots)
        raise _too_busy()

    def transact(self, body: Callable[[Connection], T]) -> T:
        """One transaction in this thread."""
        with translated(), self._borrowed() as connection, connection.begin():
            return body(connection)

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """An idle connection, which becomes idle again; one that something failed on is handed back to SQLAlchemy."""
        if self._closed:
            raise storage_unavailable("The server is going away. Try again in a moment.", detail="the store is closed")
        try:
            connection = self._idle.get(timeout=QUEUE_TIMEOUT_S)
        except Empty as error:
            raise _too_busy() from error
        healthy: Connection | None = None
        try:
            connection = connection or self._engine.connect()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            healthy = connection
        finally:
            self._idle.put(healthy)

    def close(self) -> None:
        """Close all. Transactions whose callers are gone are waited for, as long as one of them may wait for a lock."""
        self._closed = True
        deadline = time.monotonic() + 2 * BUSY_TIMEOUT_S
        with suppress(Empty):
            for _ in range(self._count):
                if connection := self._idle.get(timeout=max(0.0, deadline - time.monotonic())):
                    connection.close()
        self._engine.dispose()


def _too_busy() -> RookeryError:
    return storage_unavailable("The database is too busy. Try again in a moment.", detail="no free connection")


def _sqlite_engine(path: Path, *, begin: str, size: int, pragmas: Mapping[str, str]) -> Engine:
    engine = sqlalchemy.create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=QUEUE_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    settings = {
        # First: the others may already find a lock.
        "busy_timeout": str(int(BUSY_TIMEOUT_S * 1000)),
        "foreign_keys": "ON",
        "synchronous": "NORMAL",
        "journal_size_limit": str(_JOURNAL_BYTES),
        **pragmas,
    }

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver must not begin or commit on its own: transactions are begun below, in their own words.
        connection.isolation_level = None
        for name, value in settings.items():
            connection.execute(f"PRAGMA {name}={value}")

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute(begin)

    return engine


class PostgresDatabase:
    """A Postgres database over asyncpg. Row locks (``FOR UPDATE``) stand where SQLite has its one writer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def read(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(self._reader, lambda connection: body(connection, *args, **kwargs))

    glance = read

    async def write(self, body: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(self._engine, lambda connection: body(connection, *args, **kwargs))

    async def migrate(self, body: Callable[[Connection], T]) -> T:
        """As :meth:`write`, one process at a time."""

        def locked(connection: Connection) -> T:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7269666580)")
            return body(connection)

        return await self.write(locked)

    async def _run(self, engine: AsyncEngine, body: Callable[[Connection], T]) -> T:
        # A transaction is short and its waits are bounded (pool, lock and statement timeouts), so it is not torn.
        with anyio.CancelScope(shield=True), translated():
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    async with engine.begin() as connection:
                        return await connection.run_sync(body)
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) not in _LOST_RACE or attempt == _ATTEMPTS:
                        raise
        raise AssertionError("the loop returns or raises")

    async def close(self) -> None:
        with anyio.move_on_after(5, shield=True):
            await self._engine.dispose()


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[SqliteDatabase | PostgresDatabase]:
    """The database at ``url``, still without a look at its schema.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``; a driver's name after ``+`` is ignored.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise storage_unavailable(
            "ROOKERY_DATABASE_URL is not a database URL: use sqlite:///PATH or postgresql://USER@HOST/NAME.",
            detail=str(error),
            retryable=False,
        ) from error
    opener: AbstractAsyncContextManager[SqliteDatabase | PostgresDatabase]
    match parsed.get_backend_name():
        case "sqlite":
            opener = _open_sqlite(parsed)
        case "postgresql" | "postgres":
            opener = _open_postgres(parsed)
        case other:
            raise storage_unavailable(
                "ROOKERY_DATABASE_URL names a database that is not supported: use sqlite or postgresql.",
                detail=other,
                retryable=False,
            )
    async with opener as database:
        yield database


@asynccontextmanager
async def _open_sqlite(url: URL) -> AsyncIterator[SqliteDatabase]:
    if not url.database or url.database == ":memory:" or url.query:
        raise storage_unavailable(
            "The store needs a file: set ROOKERY_DATABASE_URL to sqlite:///PATH.", detail=str(url), retryable=False
        )
    if sqlite3.sqlite_version_info < _SQLITE_NEEDED:
        raise storage_unavailable(
            "Python's SQLite is too old: Rookery needs 3.35 or newer. Use a newer Python, or Postgres.",
            detail=sqlite3.sqlite_version,
            retryable=False,
        )
    with translated():
        path = await anyio.to_thread.run_sync(_prepare_file, Path(url.database))
    database = SqliteDatabase(path)
    try:
        yield database
    finally:
        database.close()


def _prepare_file(path: Path) -> Path:
    """Create what is missing, for this user alone, and switch to the write-ahead log, which the file remembers.

    SQLite gives its companion files the mode of the main one.
    """
    path = path.absolute()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        connection.close()
    return path


@asynccontextmanager
async def _open_postgres(url: URL) -> AsyncIterator[PostgresDatabase]:
    from sqlalchemy.ext.asyncio import create_async_engine

    try:
        engine = create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            pool_pre_ping=True,
            pool_timeout=QUEUE_TIMEOUT_S,
            connect_args={
                "timeout": 10,
                "command_timeout": 60,
                "server_settings": {"lock_timeout": str(int(BUSY_TIMEOUT_S * 1000)), "application_name": "rookery"},
            },
        )
    except ModuleNotFoundError as error:
        raise storage_unavailable(
            "Postgres needs its driver: install rookery[postgres].", detail=str(error), retryable=False
        ) from error
    database = PostgresDatabase(engine)
    try:
        yield database
    finally:
        await database.close()


def insert_for(dialect: str, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ``ON CONFLICT``, which SQLAlchemy offers for each database apart."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
