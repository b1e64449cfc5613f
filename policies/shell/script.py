"""A script taken apart, as records."""

from __future__ import annotations

from dataclasses import dataclass

from policies.shell.words import Word


class BrokenScriptError(ValueError):
    """A script that cannot be read at all: too large, too deep, or not the syntax of a shell."""


@dataclass(frozen=True)
class Redirect:
    """A redirection to or from a file; duplications of descriptors are not listed."""

    target: Word
    writes: bool
    reads: bool


@dataclass(frozen=True)
class Assignment:
    """``NAME=value``, before a command, alone, or in a declaration."""

    name: str
    value: Word


@dataclass(frozen=True)
class SimpleCommand:
    """One command of a script.

    Args:
        words: program and arguments; empty for a mere assignment or redirection.
        assignments: its assignments.
        redirects: its redirections.
        stdin: text that the script itself feeds it, if known.
        in_loop: it may run more than once.
        fed: its standard input comes from the script: a pipe, a here-document, a here-string.
    """

    words: tuple[Word, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    stdin: str | None = None
    in_loop: bool = False
    fed: bool = False


@dataclass(frozen=True)
class Script:
    """A script taken apart.

    Args:
        commands: what it visibly runs, in the order of the text.
        doubts: why it is not provable; empty if it is.
    """

    commands: tuple[SimpleCommand, ...]
    doubts: tuple[str, ...]
