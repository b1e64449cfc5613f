"""What a request is taken apart into: the records that rules are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from policies.paths import ResolvedPath, denial_forms, folded, hidden_character
from policies.shell.words import Word


class PartKind(StrEnum):
    """What a part is. The values appear in decisions."""

    TOOL = "tool"
    COMMAND = "command"
    READ = "read"
    WRITE = "write"
    ASSIGNMENT = "assignment"
    DIRECTORY = "directory"
    SCRIPT = "script"


@dataclass(frozen=True)
class PathClaim:
    """A path that a part names.

    Args:
        candidates: where it may lead, for allows: each must be covered.
        forms: the same folded, for denials: any may be hit.
        glob: folded components of a pattern, if it is one; its candidates are then the directory it starts in.
        reads: the part may read there.
        writes: the part may write there.
        deep: the part reads everything below.
        whole: the part moves, removes or replaces a directory with all that is in it.
        filtered: the glob is a filter of a search below a directory.
        plain: an allow with paths must cover it; False for mere readings of a word that only denials look at.
    """

    candidates: tuple[str, ...]
    forms: tuple[str, ...]
    glob: tuple[str, ...] | None = None
    reads: bool = True
    writes: bool = False
    deep: bool = False
    plain: bool = True
    whole: bool = False
    filtered: bool = False


@dataclass(frozen=True)
class Part:
    """One part of a request.

    Args:
        kind: what it is.
        tool: in whose name an allow must stand: a redirection's target is a Write.
        called: the tool that was called.
        text: what it is, for people.
        needs_allow: False if it is harmless by itself; denials reach it all the same.
        words: program and arguments of a command.
        names: folded names of the program, its links' ends included.
        exact_only: why only a rule with exactly these words may allow it.
        runner: a rule that allows it must name its second word too.
        open_ended: further arguments follow that are not known.
        opaque: what it will do is not plain from its words.
        certain: False if it is only one reading; then it counts for denials alone.
        claims: the paths that it names.
        directories: where it may run.
        hosts: hosts that it names.
        variables: variables that it sets.
        input: the call's input.
        doubts: of a script: why it is not provable.
        unproven: it belongs to a script that is not provable.
    """

    kind: PartKind
    tool: str
    called: str
    text: str
    needs_allow: bool = True
    words: tuple[Word, ...] = ()
    names: tuple[str, ...] = ()
    exact_only: str | None = None
    runner: bool = False
    open_ended: bool = False
    opaque: bool = False
    certain: bool = True
    claims: tuple[PathClaim, ...] = ()
    directories: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    input: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    unproven: bool = False


class RefusedError(ValueError):
    """A request that no policy can allow. ``rule`` is the built-in check, the text says what to do."""

    def __init__(self, rule: str, because: str) -> None:
        super().__init__(because)
        self.rule = rule
        self.because = because


def claim_of(path: ResolvedPath, *, reads: bool, writes: bool) -> PathClaim:
    forms = tuple(dict.fromkeys(form for candidate in path.candidates for form in denial_forms(candidate)))
    return PathClaim(path.candidates, forms, None, reads, writes)


def glob_claim(pattern: str, start: ResolvedPath, *, writes: bool, deep: bool, plain: bool = True) -> PathClaim:
    """The claim of a pattern: its directory as far as it is literal, and what it may match below."""
    base = claim_of(start, reads=True, writes=writes)
    steps = [step for step in folded(pattern).split("/") if step not in ("", ".")]
    glob = (*(step for step in base.forms[0].split("/") if step), *steps, *(("**",) if deep else ()))
    return PathClaim(base.candidates, base.forms, glob, True, writes, deep, plain)


def clean(text: str, size: int = 200) -> str:
    """A text that may be shown: bounded, on one line, without hidden characters."""
    if len(text) <= size and text.isprintable():
        return text
    shown = "".join(" " if character in "\t\n\r" or hidden_character(character) else character for character in text)
    return shown if len(shown) <= size else f"{shown[: size - 1]}…"
