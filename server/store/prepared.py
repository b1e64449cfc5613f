"""Statements of the paths that are walked most: compiled once, and on SQLite handed to the driver as they are.

SQLAlchemy takes 40 to 100 µs to run a statement that SQLite answers in 3 (measured), and a model request, a tool call
or a look at a session needs half a dozen. The columns' types convert here as they do there.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from sqlalchemy import Connection, Dialect, Select, UpdateBase
from sqlalchemy.exc import StatementError

Convert = Callable[[Any], Any]
Values = Mapping[str, Any]

_NONE: Final[Values] = {}

_named: Any = namedtuple
"""Under a name of its own: the type checker takes names of columns only where they are written down."""


class AnyRow(Protocol):
    """What SQLAlchemy's rows and those of prepared statements have in common; columns are attributes."""

    def _asdict(self) -> dict[str, Any]: ...

    def __getattr__(self, name: str) -> Any: ...


class Prepared:
    """One statement, whose parameters are :func:`~sqlalchemy.bindparam` or the columns of an INSERT.

    Args:
        statement: without lists that expand, and without defaults that Python fills in.
    """

    def __init__(self, statement: Select[Any] | UpdateBase) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    def rows(self, connection: Connection, values: Values = _NONE) -> Sequence[AnyRow]:
        """All rows that it returns."""
        compiled = self._for(connection)
        if compiled is None:
            return cast("Sequence[AnyRow]", connection.execute(self._statement, values).all())
        return [compiled.row(found) for found in self._run(connection, compiled, values).fetchall()]

    def first(self, connection: Connection, values: Values = _NONE) -> AnyRow | None:
        """The first row that it returns, if there is one."""
        compiled = self._for(connection)
        if compiled is None:
            return cast("AnyRow | None", connection.execute(self._statement, values).first())
        # To its end: a statement that changes rows is done only then.
        found = self._run(connection, compiled, values).fetchall()
        return compiled.row(found[0]) if found else None

    def change(self, connection: Connection, values: Values = _NONE) -> int:
        """Run what returns no rows; how many it changed."""
        compiled = self._for(connection)
        if compiled is None:
            return connection.execute(self._statement, values).rowcount
        return int(self._run(connection, compiled, values).rowcount)

    def change_each(self, connection: Connection, many: Iterable[Values]) -> None:
        """Run what returns no rows once for each of the values, of which there is at least one."""
        compiled = self._for(connection)
        if compiled is None:
            connection.execute(self._statement, list(many))
            return
        for values in many:
            self._run(connection, compiled, values)

    def _for(self, connection: Connection) -> _Compiled | None:
        """What the driver takes; None where SQLAlchemy runs it."""
        if connection.dialect.name != "sqlite":
            return None
        if self._compiled is None:
            self._compiled = _compile(self._statement, connection.dialect)
        return self._compiled

    def _run(self, connection: Connection, compiled: _Compiled, values: Values) -> Any:
        driver: Any = connection.connection.driver_connection
        try:
            return driver.execute(compiled.sql, compiled.arguments(values))
        except (ValueError, OverflowError) as error:
            # As SQLAlchemy reports a value that cannot be stored.
            raise StatementError(str(error), compiled.sql, None, error) from error


@dataclass(frozen=True)
class _Compiled:
    """A statement in the driver's words.

    Args:
        sql: with question marks.
        parameters: name and conversion of each, in their order; those without a name have a fixed value.
        make: makes a row of as many values as there are columns.
        conversions: by the number of the column, where there is one.
    """

    sql: str
    parameters: tuple[tuple[str | None, Convert | None, Any], ...]
    make: Callable[[Iterable[Any]], AnyRow]
    conversions: tuple[tuple[int, Convert], ...]

    def arguments(self, values: Values) -> tuple[Any, ...]:
        """What goes in for the question marks."""
        found = []
        for name, convert, fixed in self.parameters:
            if name is None:
                found.append(fixed)
            else:
                found.append(values[name] if convert is None else convert(values[name]))
        return tuple(found)

    def row(self, found: Sequence[Any]) -> AnyRow:
        """The row in Python's types."""
        if not self.conversions:
            return self.make(found)
        values = list(found)
        for at, convert in self.conversions:
            values[at] = convert(values[at])
        return self.make(values)


def _compile(statement: Select[Any] | UpdateBase, dialect: Dialect) -> _Compiled:
    compiled = statement.compile(dialect=dialect)
    if compiled.insert_prefetch or compiled.update_prefetch:
        raise TypeError("a prepared statement names all its values")
    parameters: list[tuple[str | None, Convert | None, Any]] = []
    for name in compiled.positiontup or ():
        bind = compiled.binds[name]
        if bind.expanding:
            raise TypeError("a prepared statement holds no list that expands")
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        if bind.required:
            parameters.append((name, convert, None))
        else:
            value = bind.effective_value
            parameters.append((None, None, value if convert is None else convert(value)))
    columns = list(statement.exported_columns.items())
    converts = [column.type.dialect_impl(dialect).result_processor(dialect, None) for _, column in columns]
    row = _named("Row", [str(name) for name, _ in columns], rename=True)
    conversions = tuple((at, convert) for at, convert in enumerate(converts) if convert is not None)
    return _Compiled(str(compiled), tuple(parameters), row._make, conversions)
