"""The one error of this room: a policy that cannot be used, said so that its author can mend it."""

from __future__ import annotations


class PolicyError(ValueError):
    """A policy is unknown, malformed, or contradicts itself.

    Args:
        message: what is wrong, one sentence without a full stop.
        file: the policy's name or file name (never a whole path of the host), if there is one.
        line: line in that file, counted from 1.
        remedy: what to write instead.
    """

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, remedy: str | None = None
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        place = "" if self.file is None else self.file if self.line is None else f"{self.file}:{self.line}"
        text = f"{place}: {self.message}" if place else self.message
        return f"{text}; {self.remedy}" if self.remedy else text
