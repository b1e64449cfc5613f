"""Column types that mean the same on SQLite and on Postgres."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Text
from sqlalchemy.types import TypeDecorator


def dump_json(value: object) -> str:
    """Compact JSON in pure ASCII, so that NUL characters and lone surrogates survive in any database.

    Numbers that JSON does not know (NaN, infinities), which the CLI's output can hold, become null.

    Raises:
        ValueError: the value is nested too deeply, or is no JSON at all.
    """
    try:
        try:
            return json.dumps(value, separators=(",", ":"), allow_nan=False)
        except ValueError:
            return json.dumps(_without_nan(value), separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ValueError("the value is nested too deeply to be stored") from error
    except TypeError as error:
        raise ValueError("the value is not JSON") from error


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


class Json(TypeDecorator[Any]):
    """A JSON value, stored as ASCII text; ``None`` is NULL. Kept as text, because ``jsonb`` refuses NUL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else dump_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC. Naive times are refused: they would be guessed at."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        # SQLite keeps no zone: what went in was UTC.
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """Text from outside, which may hold what a database refuses.

    Lone surrogates become U+FFFD everywhere, NUL on Postgres only; all else is kept as it came.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        try:
            value.encode()
        except UnicodeEncodeError:
            # By way of UTF-16, where a pair of surrogates that belong together becomes the character it stands for.
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value.replace("\0", "\ufffd") if dialect.name == "postgresql" else value
