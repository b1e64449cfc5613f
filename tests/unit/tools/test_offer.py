"""Texts that name tools, told to callers who have only some of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from server.errors import ErrorCode, RookeryError
from tools.offer import NOTHING_HELPS, Offer
from tools.toolsets import TOOLSETS, tools_of

ROOT: Final = Path(__file__).parents[3]
ARGUMENTS: Final = {tool.name: frozenset(tool.arguments.model_fields) for tools in TOOLSETS.values() for tool in tools}
NAMES: Final = re.compile(rf"\b(?:{'|'.join(name for name in ARGUMENTS if '_' in name)})\b")


def offer_of(*toolsets: str, read_only: bool = False) -> Offer:
    names = frozenset(tool.name for tool in tools_of(toolsets, read_only=read_only))
    return Offer(names, ARGUMENTS, approves=True)


OFFERS: Final = {
    "simple": offer_of("simple"),
    "sessions": offer_of("sessions"),
    "files": offer_of("files"),
    "undo": offer_of("undo"),
    "read-only": offer_of("all", read_only=True),
    "nothing": Offer(frozenset(), ARGUMENTS, approves=False),
}


def messages() -> Iterator[str]:
    """Every message of an error in the server's source that names a tool, what is put into it left open."""
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="RookeryError"), args=[_, ast.Constant(value=str(text))]):
                    pass
                case ast.Call(func=ast.Name(id="RookeryError"), args=[_, ast.JoinedStr(values=parts)]):
                    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in parts)
                case _:
                    continue
            if NAMES.search(text):
                yield text


@pytest.mark.parametrize("name", OFFERS)
def test_every_remedy_of_the_server_can_be_told_to_who_has_only_some_tools(name: str) -> None:
    found = list(messages())
    assert len(found) > 15
    for text in found:
        told = OFFERS[name].worded(text)
        assert set(NAMES.findall(told)) <= {tool for tool in ARGUMENTS if tool in OFFERS[name]}, text
        assert told[:1].isupper() == text[:1].isupper(), told
        assert told.endswith(".") == text.endswith("."), told
        # What happened is said in any case; only what to do about it may go.
        assert told != NOTHING_HELPS, text


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("sessions", "Call continue_session to go on.", "Call continue_session to go on."),
        ("simple", "It broke. Call continue_session to go on.", "It broke. Call reply to go on."),
        ("files", "It broke: call get_session to look.", "It broke."),
        ("files", "It runs. Wait with wait_for_sessions, or raise the limit.", "It runs. Raise the limit."),
        ("simple", "It runs. Wait with wait_for_sessions, or call interrupt_session.", "It runs. Wait with reply."),
        ("simple", "Spent. Call continue_session with a higher budget_usd to go on.", "Spent."),
        ("nothing", "Call list_files.", NOTHING_HELPS),
        ("nothing", "The file list_filesystem is no tool, nor is my_list_files.", None),
    ],
)
def test_what_cannot_be_called_is_named_otherwise_or_left_out(name: str, text: str, told: str | None) -> None:
    assert OFFERS[name].worded(text) == (text if told is None else told)


def test_an_error_stays_what_it_is_but_for_its_remedy() -> None:
    error = RookeryError(ErrorCode.SESSION_BUSY, "It runs; call interrupt_session.", detail="why", retryable=False)
    told = OFFERS["files"].told(error)
    assert (told.code, told.message, told.detail, told.retryable) == (error.code, "It runs.", "why", False)
