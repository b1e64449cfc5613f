"""Reads the usage figures of a Messages API response, and says where they cannot be believed.

The figures are the provider's, but what they cost is the user's money: a figure that is missing, negative or of the
wrong type is never taken as zero. It is replaced by an estimate from what passed, on the high side, and the entry
is marked as estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server.models import Usage

BYTES_PER_TOKEN: Final = 3.0
"""Bytes of text for one token, on the low side, so that estimates come out high. (English prose has about four.)"""

IMAGE_TOKENS: Final = 5_000
"""Upper end of what one image counts for, whatever its size in bytes."""

PDF_BYTES_PER_TOKEN: Final = 2.0
"""Bytes of a PDF for one token: a page is read both as text and as image."""

MAX_CONTEXT: Final = 1_000_000
"""Tokens of the largest context window: no request has more input."""

_MAX_TOKENS: Final = 1 << 40
"""Figures above are no token counts."""


@dataclass
class UsageReader:
    """Gathers the figures of one response. ``usage`` objects may come several times; each is cumulative."""

    figures: dict[str, int] = field(default_factory=dict)
    suspicious: bool = False
    """Some figure was negative, of the wrong type or absurd."""

    def read(self, usage: object) -> set[str]:
        """Take in one ``usage`` object. Repeated figures count once: the largest stands.

        Returns:
            The names of the token figures that were there and could be believed.
        """
        if usage is None:
            return set()
        if not isinstance(usage, Mapping):
            self.suspicious = True
            return set()
        names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        taken = {name for name in names if self._take(name, usage.get(name))}
        self._nested(usage.get("cache_creation"), ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"))
        self._nested(usage.get("server_tool_use"), ("web_search_requests", "web_fetch_requests"))
        self._iterations(usage.get("iterations"))
        return taken

    def _nested(self, value: object, names: tuple[str, ...]) -> None:
        if isinstance(value, Mapping):
            for name in names:
                self._take(name, value.get(name))
        elif value is not None:
            self.suspicious = True

    def _iterations(self, value: object) -> None:
        """Steps inside one response (compaction): the figures outside may leave some of them out."""
        if not isinstance(value, list) or not value:
            return
        total = Usage()
        for step in value:
            reader = UsageReader()
            reader.read(step if isinstance(step, Mapping) else 0)
            self.suspicious |= reader.suspicious
            total += reader.usage()
        self._take("input_tokens", total.input_tokens)
        self._take("output_tokens", total.output_tokens)
        self._take("cache_read_input_tokens", total.cache_read_tokens)
        self._take("cache_creation_input_tokens", total.cache_write_tokens)

    def _take(self, name: str, value: object) -> bool:
        if value is None:
            return False
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TOKENS:
            self.suspicious = True
            return False
        self.figures[name] = max(value, self.figures.get(name, 0))
        return True

    def usage(self, *, input_estimate: int | None = None, output_estimate: int | None = None) -> Usage:
        """The figures so far; an estimate stands where there is none."""
        figure = self.figures.get
        long_lived = figure("ephemeral_1h_input_tokens", 0)
        written = max(figure("cache_creation_input_tokens", 0), figure("ephemeral_5m_input_tokens", 0) + long_lived)
        return Usage(
            input_tokens=figure("input_tokens", input_estimate or 0),
            output_tokens=max(figure("output_tokens", 0), output_estimate or 0),
            cache_read_tokens=figure("cache_read_input_tokens", 0),
            cache_write_tokens=written,
            cache_write_1h_tokens=long_lived,
            server_tool_requests=figure("web_search_requests", 0) + figure("web_fetch_requests", 0),
        )


def estimate_input_tokens(body: Mapping[str, Any], size: int) -> int:
    """Upper estimate of a request's input tokens from its size.

    Args:
        body: the parsed request.
        size: its length in bytes as JSON.
    """
    media = _Media()
    for message in body.get("messages") or ():
        media.add(message)
    text = max(0, size - media.bytes)
    tokens = text / BYTES_PER_TOKEN + media.images * IMAGE_TOKENS + media.pdf_bytes / PDF_BYTES_PER_TOKEN
    return min(math.ceil(tokens), MAX_CONTEXT)


@dataclass
class _Media:
    """Encoded images and documents, which weigh much in bytes and little in tokens."""

    bytes: int = 0
    images: int = 0
    pdf_bytes: float = 0.0

    def add(self, value: object) -> None:
        if not isinstance(value, Mapping):
            return
        source = value.get("source")
        if isinstance(source, Mapping) and isinstance(data := source.get("data"), str) and source.get("type") != "text":
            self.bytes += len(data)
            if value.get("type") == "image":
                self.images += 1
            else:
                self.pdf_bytes += len(data) * 3 / 4
        for name in ("content", "source"):
            nested = value.get(name)
            for entry in nested if isinstance(nested, list) else [nested]:
                self.add(entry)
