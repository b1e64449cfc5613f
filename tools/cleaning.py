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

_STEERING: Final = re.compile(
    # Controls of both kinds but tab and newline, overrides of the direction of writing, and characters of no width.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)

_SECRETS: Final = (
    ("Anthropic key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{16,}"),
    ("OpenAI key", "sk-proj-", r"sk-proj-[A-Za-z0-9_-]{20,}"),
    ("E2B key", "e2b_", r"e2b_[a-f0-9]{40}"),
    ("Rookery token", "rky_", r"rky_[A-Za-z0-9_-]{43}"),
    ("AWS key", "AKIA", r"AKIA[A-Z0-9]{16}"),
    ("AWS key", "ASIA", r"ASIA[A-Z0-9]{16}"),
    ("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{22,}"),
    ("GitHub token", "gh", r"gh[oprsu]_[A-Za-z0-9]{36,}"),
    ("GitLab token", "glpat-", r"glpat-[A-Za-z0-9_-]{20,}"),
    ("Slack token", "xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("Google key", "AIza", r"AIza[A-Za-z0-9_-]{35}"),
    ("Stripe key", "k_live_", r"[rs]k_live_[A-Za-z0-9]{16,}"),
    ("npm token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    (
        "private key",
        "PRIVATE KEY",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----END))*(?:-----END[A-Z -]*)?",
    ),
)
"""What it is called, a part that every one has, and its form, by the documentation of who gives it out. Only forms
that nothing else has: an answer in which hashes or ids are missing would be useless."""

_SECRET: Final = re.compile("|".join(rf"(?P<s{at}>(?<![A-Za-z0-9]){form})" for at, (_, _, form) in enumerate(_SECRETS)))

_REMOTE_IMAGE: Final = re.compile(r"!(?=\[[^\]\n]{0,1000}\](?:\(\s{0,8}<?(?:[A-Za-z][A-Za-z0-9+.-]{0,20}:)?//|\[))")
"""The mark that makes an image of a Markdown link to somewhere else, given there or by reference."""

MAX_DEPTH: Final = 64

_SUSPECT: Final = ("\\u", "\\r", "\\b", "\\f", "\x7f", "![", *(part for _, part, _ in _SECRETS))
"""What is in the JSON of any value with a string that needs a closer look, other characters than ASCII apart."""


def cleaned(text: str) -> str:
    """The text with a replacement character for each that steers; carriage returns before newlines just go."""
    if text.isascii() and text.isprintable():
        return text
    return _STEERING.sub("\ufffd", text.replace("\r\n", "\n"))


def guarded(text: str) -> str:
    """The text cleaned, with the kind of each secret in its place, and remote images as the links that they are."""
    text = cleaned(text)
    if any(part in text for _, part, _ in _SECRETS):
        text = _SECRET.sub(_named, text)
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
        return {guarded(key): _guarded(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_guarded(item, depth + 1) for item in value]
    return value


def guarded_json(value: BaseModel) -> str:
    """The JSON of a record, guarded."""
    return json.dumps(guarded_value(value.model_dump(mode="json")), ensure_ascii=False, separators=(",", ":"))


def _named(match: re.Match[str]) -> str:
    group = match.lastgroup
    assert group is not None, "each alternative is a group"
    name, _, _ = _SECRETS[int(group.removeprefix("s"))]
    return f"[redacted: {name}]"
