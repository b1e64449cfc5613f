"""What a caller can call here, and how our texts are told to it: they name no tool that it cannot call.

The server below knows the tools by the names that the design fixes. Which of them a caller has is known at the
surface alone: it depends on the toolsets, on read-only mode and on the scopes of the caller's credential.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from server.errors import RookeryError

STAND_INS: Final = {"spawn_agent": "run_agent", "continue_session": "reply", "wait_for_sessions": "reply"}
"""Tools of the toolset ``simple`` that do the same, as far as they take the same arguments."""

NOTHING_HELPS: Final = "No tool that you are offered goes on from here."
"""What is left of a text that says nothing but to call what is not there."""

_NAMES: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")
"""What may name a tool or an argument."""

_SENTENCES: Final = re.compile(r"(?<=\.) ")
_JOINTS: Final = re.compile(r"(; |: |, or )")
"""Between the parts of a sentence that can be left out by themselves."""


class Offer:
    """The tools that one caller can call.

    Args:
        names: those tools.
        arguments: of every tool that there is, the names of its arguments.
        approves: whether the caller may answer what a policy asks, by whatever tool.
    """

    def __init__(self, names: Collection[str], arguments: Mapping[str, Collection[str]], *, approves: bool) -> None:
        self.approves = approves
        self.names: Final = frozenset(names)
        self._arguments = arguments

    def __contains__(self, tool: str) -> bool:
        return tool in self.names

    def first(self, *tools: str) -> str | None:
        """The first of these that can be called."""
        return next((tool for tool in tools if tool in self.names), None)

    def among(self, *tools: str) -> Offer:
        """Of what the caller can call these alone."""
        return Offer(frozenset(tools) & self.names, self._arguments, approves=self.approves)

    def worded(self, text: str) -> str:
        """A text of ours with other names for the tools that go by others here, and without what names none."""
        return self.described(text) or NOTHING_HELPS

    def described(self, text: str) -> str:
        """As :meth:`worded`, of a text that leads nowhere: empty where all of it names what is not there."""
        if not self._missing(text):
            return text
        return " ".join(said for sentence in _SENTENCES.split(text) if (said := self._sentence(sentence)))

    def told(self, error: RookeryError) -> RookeryError:
        """An error as the caller is told of it: its remedies are such as the caller has."""
        message = self.worded(error.message)
        return RookeryError(error.code, message, detail=error.detail, retryable=error.retryable)

    def _sentence(self, sentence: str) -> str:
        """The parts of a sentence that can be told, again as a sentence; empty when there is none."""
        first, *rest = _JOINTS.split(sentence)
        parts = [("", first), *zip(rest[::2], rest[1::2], strict=True)]
        told = [(joint, said) for joint, part in parts if (said := self._part(part)) is not None]
        if not told:
            return ""
        text = told[0][1] + "".join(joint + said for joint, said in told[1:])
        text = text if told[0][0] == "" else text[:1].upper() + text[1:]
        return f"{text}." if sentence.endswith(".") and not text.endswith(".") else text

    def _part(self, part: str) -> str | None:
        """A part of a sentence; None when it names a tool that is not here, nor one that does the same."""
        for name in self._missing(part):
            other = STAND_INS.get(name)
            if other is None or other not in self.names:
                return None
            part = part.replace(name, other)
            given = set(_NAMES.findall(part)) & set(self._arguments[name])
            if not given <= set(self._arguments[other]):
                return None
        return part

    def _missing(self, text: str) -> set[str]:
        """The tools that a text names and the caller does not have."""
        return {name for name in _NAMES.findall(text) if name in self._arguments and name not in self.names}
