"""The log: one JSON object a line on stderr, and no secret in it.

Redaction is the last step before rendering, so it sees all that a line will hold, texts of exceptions included. Logs
of libraries go the same way.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog
from opentelemetry import trace

from server.secret_forms import without_secrets

REDACTED: Final = "[redacted]"

_SECRET_NAME: Final = re.compile(
    r"(?i)(^|[_-])(authorization|api[_-]?key|auth[_-]?token|oauth[_-]?token|token|secret|password|cookie)$"
)
"""Names of fields whose values are never shown, whatever they look like."""

_MAX_DEPTH: Final = 8


def redact(value: Any, _depth: int = 0) -> Any:
    """The value with every secret in it replaced by :data:`REDACTED`. Looks into mappings and sequences."""
    if isinstance(value, str):
        return without_secrets(value, REDACTED)
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "replace"), _depth)
    if value is None or isinstance(value, bool | int | float):
        return value
    if _depth >= _MAX_DEPTH:
        return REDACTED
    if isinstance(value, Mapping):
        return {
            str(redact(str(name), _depth + 1)): REDACTED
            if isinstance(name, str) and _SECRET_NAME.search(name) and member not in (None, "")
            else redact(member, _depth + 1)
            for name, member in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(member, _depth + 1) for member in value]
    return redact(repr(value), _depth + 1)


def redaction(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor. Must stand last before the renderer."""
    private = {name: line[name] for name in ("_record", "_from_structlog") if name in line}
    return {**redact({name: value for name, value in line.items() if name not in private}), **private}


def trace_ids(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that names the trace under way, so that a line and its span find each other."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        line["trace_id"], line["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return line


def configure_logging(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send our log and that of all libraries to stderr, one redacted line each. May be called again.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``; libraries say at least ``warning`` unless it is ``debug``.
        stream: for tests; by default what ``sys.stderr`` is now.
    """
    target = stream if stream is not None else sys.stderr
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        trace_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redaction,
                structlog.processors.JSONRenderer(ensure_ascii=True),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    threshold = logging.getLevelName(level.upper())
    root.setLevel(threshold if level == "debug" else max(threshold, logging.WARNING))
    for name in ("rookery", "server", "tools", "policies"):
        logging.getLogger(name).setLevel(threshold)
