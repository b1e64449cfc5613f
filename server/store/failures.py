"""Every failure of the database, as one error that says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

from server.errors import ErrorCode, RookeryError

_REMEDIES: Final = {
    "SQLITE_BUSY": "Another process holds the database for too long. Try again; if it stays so, stop that process.",
    "SQLITE_LOCKED": "Another process holds the database for too long. Try again; if it stays so, stop that process.",
    "SQLITE_FULL": "The disk that holds the database is full. Free some space, then try again.",
    "SQLITE_READONLY": "The database cannot be written. Give this user write access to ROOKERY_HOME and its files.",
    "SQLITE_PERM": "The database cannot be opened. Give this user access to ROOKERY_HOME and its files.",
    "SQLITE_CANTOPEN": "The database cannot be opened. Check that ROOKERY_HOME exists and belongs to this user.",
    "SQLITE_CORRUPT": "The database is damaged. Restore it from a backup, or move it away to start with an empty one.",
    "SQLITE_NOTADB": "The database file is not a database. Restore it from a backup, or move it away to start afresh.",
    "SQLITE_IOERR": "The disk that holds the database fails or is full. Check the disk, then try again.",
    "SQLITE_NOMEM": "The database ran out of memory. Free some memory, then try again.",
}
"""By SQLite's primary result code (https://www.sqlite.org/rescode.html)."""

_REMEDY: Final = "The database cannot be used now. Run `rookery doctor`, check ROOKERY_DATABASE_URL, then try again."


def storage_unavailable(message: str, *, detail: str | None = None, retryable: bool | None = None) -> RookeryError:
    """An error of the store itself, ``storage_unavailable``."""
    return RookeryError(ErrorCode.STORAGE_UNAVAILABLE, message, detail=detail, retryable=retryable)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLAlchemy, its drivers and the operating system raise into a :class:`RookeryError`.

    ``storage_unavailable`` for what the machine or the network did, ``internal`` for a statement of ours that broke a
    rule of the schema, ``invalid_argument`` for a value that no database can hold.
    """
    try:
        yield
    except (exc.IntegrityError, exc.ProgrammingError, sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
        raise _own_fault(error) from error
    except exc.StatementError as error:
        if isinstance(error.orig, ValueError | OverflowError) and not isinstance(error, exc.DBAPIError):
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT, f"A value cannot be stored: {error.orig}.", detail=_cause(error)
            ) from error
        raise storage_unavailable(_remedy(error.orig), detail=_cause(error)) from error
    except (exc.TimeoutError, sqlite3.Error, OSError, TimeoutError) as error:
        raise storage_unavailable(_remedy(error), detail=_cause(error)) from error
    except exc.SQLAlchemyError as error:
        raise _own_fault(error) from error


def _own_fault(error: BaseException) -> RookeryError:
    return RookeryError(
        ErrorCode.INTERNAL, "The store refused a change. This is a fault of Rookery: report it.", detail=_cause(error)
    )


def _remedy(cause: BaseException | None) -> str:
    # Extended codes carry the primary one in their low byte; only their names are at hand: SQLITE_IOERR_WRITE.
    name = getattr(cause, "sqlite_errorname", None) or ""
    for code, remedy in _REMEDIES.items():
        if name == code or name.startswith(code + "_"):
            return remedy
    return _REMEDY


def _cause(error: BaseException) -> str:
    """The driver's own words. The statement's parameters, which may hold prompts, are left out."""
    original = getattr(error, "orig", None) or error
    name = getattr(original, "sqlite_errorname", None)
    return f"{type(original).__name__}: {original}" + (f" ({name})" if name else "")
