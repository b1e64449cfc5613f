"""Reads from a request where its conversation stands. The scripted model keeps no sessions: all it needs is here,
so that resumed and forked sessions go on where their conversation does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

_REMINDER: Final = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)

_INJECTED: Final = (
    "[Request interrupted by user",
    "[Tool call did not complete",
    "<command-",
    "<local-command-",
    "<task-notification>",
    "Continue from where you left off",
    "Output token limit hit",
    "Your response was cut off",
    "Your response above was cut off",
    "Stop hook feedback",
    "You MUST call the ",
)
"""How texts begin that the CLI writes in the user's name (seen in CLI 2.1.330)."""

CUT_OFF: Final = "Your response above was cut off mid-stream"
"""How the CLI asks for the rest when a stream broke and some of it was kept as a message of its own; as a reminder
since 2.1.332."""

SUMMARY_REQUEST: Final = "Your task is to create a detailed summary of the conversation"


@dataclass(frozen=True)
class Conversation:
    """A request's conversation."""

    prompt: str
    """The last prompt of the user, without what the CLI added."""
    answers: int
    """Finished messages of the assistant since then."""
    broken: int
    """Attempts at the next message that broke off and left a piece in the conversation."""
    tool_results: tuple[str, ...]
    """Texts of the tool results since then."""
    wants_summary: bool
    """The CLI asks for a summary to shorten the conversation by."""
    spoken: tuple[tuple[str, str], ...]
    """Role and text of all that was said."""
    reminders: tuple[str, ...]
    """All system reminders."""


def read_conversation(body: Mapping[str, Any]) -> Conversation:
    """Read a request's ``messages``."""
    messages = [message for message in body.get("messages") or () if isinstance(message, Mapping)]
    start, prompt = 0, ""
    for index, message in enumerate(messages):
        words = prompt_of(message)
        if words:
            start, prompt = index, words
    since = messages[start:]
    last = messages[-1] if messages else {}
    answers, broken = _answers(since)
    return Conversation(
        prompt=prompt,
        answers=answers,
        broken=broken,
        tool_results=tuple(_text(block) for message in since for block in _blocks(message, "tool_result")),
        wants_summary=last.get("role") == "user" and SUMMARY_REQUEST in prompt,
        spoken=tuple(_spoken(messages)),
        reminders=tuple(found for message in messages for text in _texts(message) for found in _REMINDER.findall(text)),
    )


def _answers(messages: list[Mapping[str, Any]]) -> tuple[int, int]:
    """Finished messages of the assistant, and pieces of broken ones after the last of them."""
    finished = pieces = 0
    for message, following in pairwise([*messages, {}]):
        if message.get("role") != "assistant":
            continue
        if any(text.removeprefix("<system-reminder>").lstrip().startswith(CUT_OFF) for text in _texts(following)):
            pieces += 1
        else:
            finished, pieces = finished + 1, 0
    return finished, pieces


def prompt_of(message: Mapping[str, Any]) -> str:
    """The user's own words in a message; empty when there are none, as in one that only brings tool results.

    After an interrupt the results of the stopped tools and the next prompt come in one message; so do a prompt that
    got no answer and the next one. The last text is the prompt.
    """
    if message.get("role") != "user":
        return ""
    texts = [_REMINDER.sub("", text).strip() for text in _texts(message)]
    return next((text for text in reversed(texts) if text and not text.startswith(_INJECTED)), "")


def _spoken(messages: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for message in messages:
        text = "\n".join(_texts(message)) if message.get("role") == "assistant" else prompt_of(message)
        if text:
            yield str(message.get("role")), text


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for block in _blocks(message, "text"):
        if isinstance(text := block.get("text"), str):
            yield text


def _blocks(message: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, list):
        for block in content:
            if isinstance(block, Mapping) and block.get("type") == kind:
                yield block


def _text(block: Mapping[str, Any]) -> str:
    """The text of a tool result, without what the CLI added to it."""
    return _REMINDER.sub("", "\n".join(_texts(block))).strip()
