"""Takes out of answers what could harm the one who reads them (row X13).

An agent's words, the names of its files and what its tools printed are untrusted. An escape sequence in them could
move a cursor, set a clipboard or hide a line where a client shows them; a secret that the agent came across would be
copied into one more conversation; and a remote image would be fetched by whatever renders it, with whatever the agent
put into its address.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel

from server.secret_forms import SECRET_FORMS, named_secrets

_STEERING: Final = re.compile(
    # Controls of both kinds but tab and newline, overrides of the direction of writing, and characters of no width.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)

_REMOTE_IMAGE: Final = re.compile(r"!(?=\[[^\]\n]{0,1000}\](?:\(\s{0,8}<?(?:[A-Za-z][A-Za-z0-9+.-]{0,20}:)?//|\[))")
"""The mark that makes an image of a Markdown link to somewhere else, given there or by reference."""

MAX_DEPTH: Final = 64

_SUSPECT: Final = ("\\u", "\\r", "\\b", "\\f", "\x7f", "![", *(form.part for form in SECRET_FORMS))
"""What is in the JSON of any value with a string that needs a closer look, other characters than ASCII apart."""


def cleaned(text: str) -> str:
    """The text with a replacement character for each that steers; carriage returns before newlines just go."""
    if text.isascii() and text.isprintable():
        return text
    return _STEERING.sub("\ufffd", text.replace("\r\n", "\n"))


def guarded(text: str) -> str:
    """The text cleaned, with the kind of each secret in its place, and remote images as the links that they are."""
    text = named_secrets(cleaned(text))
    return _REMOTE_IMAGE.sub("", text) if "![" in text else text


def guarded_value(value: Any) -> Any:
    """A JSON value with all its strings guarded, keys included; what is nested too deeply is left out."""
    return value if _is_harmless(value) else _guarded(value, 0)


def _is_harmless(value: Any) -> bool:
    """Whether one look at the whole value tells that nothing in it needs to be taken out, as with nearly all."""
    try:
        # Six times faster than the standard library's, and each answer passes here.
        text = pydantic_core.to_json(value).decode()
    except (RecursionError, ValueError, TypeError):
        return False
    if text.count("[") + text.count("{") > MAX_DEPTH or any(part in text for part in _SUSPECT):
        return False
    return text.isascii() or _STEERING.search(text) is None


def _guarded(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return guarded(value)
    if depth >= MAX_DEPTH:
        return None if isinstance(value, dict | list) else value
    if isinstance(value, dict):
        shown: dict[str, Any] = {}
        for key, item in value.items():
            name = guarded(key)
            while name in shown:
                # Two names that look the same once they are cleaned: neither may hide what the other one holds.
                name += "\ufffd"
            shown[name] = _guarded(item, depth + 1)
        return shown
    if isinstance(value, list):
        return [_guarded(item, depth + 1) for item in value]
    return value


def guarded_json(value: BaseModel) -> str:
    """The JSON of a record, guarded."""
    return json.dumps(guarded_value(value.model_dump(mode="json")), ensure_ascii=False, separators=(",", ":"))
