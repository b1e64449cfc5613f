"""Path patterns: globs with a clear anchor, matched component by component.

An anchor says where a pattern starts, so that none means less (or more) than its author thought:

============== ==========================================================
``/etc/**``    absolute, in the sandbox
``~/.ssh/**``  the agent's home
``workspace/`` the session's workspace
``**/.env``    anywhere
============== ==========================================================

``*`` and ``?`` stay within a component, ``**`` is a component of its own and stands for any number of them, ``[abc]``
and ``[!abc]`` are classes. ``dir/**`` also matches ``dir`` itself. There is no negation: a denial is a rule.
Patterns compile to regular expressions with atomic groups, so matching takes time linear in the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MAX_PATTERN: Final = 512
MAX_COMPONENTS: Final = 64
HOME: Final = "~"
WORKSPACE: Final = "workspace"


class PatternError(ValueError):
    """A pattern that is not one. ``args`` are the fault and the remedy."""

    @property
    def fault(self) -> str:
        return str(self.args[0])

    @property
    def remedy(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True)
class PathPattern:
    """A parsed pattern. ``components`` are relative to its anchor: ``/``, ``~``, ``workspace`` or ``**``."""

    text: str
    anchor: str
    components: tuple[str, ...]


def parse_pattern(text: str) -> PathPattern:
    """Read a pattern.

    Raises:
        PatternError: no anchor, negation, braces, backslashes, ``..``, a misplaced ``**``, or too long.
    """
    if not text or len(text) > MAX_PATTERN:
        raise PatternError("a path pattern is empty or too long", f"use 1 to {MAX_PATTERN} characters")
    if text.startswith("!"):
        raise PatternError(f"the path pattern {text!r} is negated", "write a rule with effect deny instead")
    for character, remedy in (("{", "list the alternatives"), ("}", "list the alternatives"), ("\\", "use / only")):
        if character in text:
            raise PatternError(f"the path pattern {text!r} holds {character}", remedy)
    head, *tail = text.split("/")
    if head not in ("", HOME, WORKSPACE, "**"):
        raise PatternError(
            f"the path pattern {text!r} has no anchor",
            f"write workspace/{text.removeprefix('./')} (in the workspace) or **/{text.removeprefix('./')} "
            "(anywhere); / is the sandbox's root, ~/ the agent's home",
        )
    components = ["**", *tail] if head == "**" else tail
    if components and components[-1] == "":
        # A trailing slash names the directory with all that is in it, as in gitignore.
        components[-1] = "**"
    if len(components) > MAX_COMPONENTS:
        raise PatternError(f"the path pattern {text!r} is too deep", f"use at most {MAX_COMPONENTS} components")
    for component in components:
        if component in ("", ".", ".."):
            raise PatternError(f"the path pattern {text!r} holds an empty, . or .. component", "write it out plainly")
        if "**" in component and component != "**":
            raise PatternError(f"in the path pattern {text!r} ** is not a component", "put slashes around it")
        try:
            re.compile(component_expression(component))
        except re.error:
            raise PatternError(f"the path pattern {text!r} holds a malformed class", "write [abc] or [a-z]") from None
    collapsed = tuple(
        component
        for index, component in enumerate(components)
        if component != "**" or index == 0 or components[index - 1] != "**"
    )
    return PathPattern(text, "/" if head in ("", "**") else head, collapsed)


def _class_end(component: str, start: int) -> int | None:
    """Index of the ``]`` that closes the class opened at ``start``, or None when it is a plain bracket."""
    index = start + 1
    if index < len(component) and component[index] in "!^":
        index += 1
    if index < len(component) and component[index] == "]":
        index += 1
    end = component.find("]", index)
    return None if end < 0 else end


def _tokens(component: str) -> list[str]:
    """A component's pattern as regular expressions for one character each, and ``*``."""
    tokens: list[str] = []
    index = 0
    while index < len(component):
        character = component[index]
        end = _class_end(component, index) if character == "[" else None
        if character == "*":
            if not tokens or tokens[-1] != "*":
                tokens.append("*")
        elif character == "?":
            tokens.append("[^/]")
        elif end is not None:
            inner = component[index + 1 : end]
            negated = inner[:1] in ("!", "^")
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[1:] if negated else inner)
            tokens.append(f"[^/{body}]" if negated else f"(?!/)[{body}]")
            index = end
        else:
            tokens.append(re.escape(character))
        index += 1
    return tokens


def component_expression(component: str) -> str:
    """The regular expression of one component, free of catastrophic backtracking.

    The earliest place for each piece between two stars is as good as any later one, so every piece but the last is
    matched lazily in an atomic group.
    """
    pieces: list[list[str]] = [[]]
    for unit in _tokens(component):
        if unit == "*":
            pieces.append([])
        else:
            pieces[-1].append(unit)
    if len(pieces) == 1:
        return "".join(pieces[0])
    middle = "".join(f"(?>[^/]*?{''.join(piece)})" for piece in pieces[1:-1] if piece)
    return f"{''.join(pieces[0])}{middle}[^/]*{''.join(pieces[-1])}"


def path_expression(root: str, components: Sequence[str], *, below: bool) -> str:
    """The expression of a whole pattern under an absolute root (``""`` for the root directory itself)."""
    runs: list[list[str]] = [[]]
    for component in components:
        if component == "**":
            runs.append([])
        else:
            runs[-1].append(component_expression(component))
    # Each run of components between two "**" is taken at its earliest place, for the same reason as above.
    text = re.escape(root) + "".join(f"/{part}" for part in runs[0])
    for index, run in enumerate(runs[1:], start=1):
        body = "".join(f"/{part}" for part in run)
        if not run:
            text += "(?:/.*)?"
        elif index == len(runs) - 1:
            text += f"(?:/[^/]+)*{body}"
        else:
            text += f"(?>(?:/[^/]+)*?{body}(?=/|\\Z))"
    return text + ("(?:/.*)?" if below and components[-1:] != ["**"] else "")


UNDOTTED: Final = "\x01"
"""Prefix of a component whose wildcard does not match a leading dot, as in a shell."""


def components_meet(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether some path matches both of two globs given as components. Exact for ``**``, careful within components."""
    for one, other in zip(first, second, strict=False):
        if one == "**" or other == "**":
            break
        if not names_meet(one, other):
            return False
    # Reachable pairs of positions, row by row: O(len(first) * len(second)).
    width = len(second)
    row = [False] * (width + 1)
    row[0] = True
    for column in range(width):
        row[column + 1] = row[column] and second[column] == "**"
    for component in first:
        following = [row[0] and component == "**"] + [False] * width
        for column in range(width):
            other = second[column]
            if component == "**":
                reachable = row[column + 1] or following[column]
                following[column + 1] = reachable or (other == "**" and row[column])
            elif other == "**":
                following[column + 1] = row[column + 1] or following[column]
            else:
                following[column + 1] = row[column] and names_meet(component, other)
        row = following
    return row[width]


@lru_cache(maxsize=4096)
def names_meet(first: str, second: str) -> bool:
    """Whether some name matches both of two single-component globs. A class counts as any character."""
    if second.startswith(UNDOTTED):
        if first.startswith("."):
            return False
        second = second[1:]
    left, right = _glyphs(first), _glyphs(second)
    if _differ(left, right) or _differ(reversed(left), reversed(right)):
        return False
    row = [True] + [False] * len(right)
    for column, glyph in enumerate(right):
        row[column + 1] = row[column] and glyph == "*"
    for glyph in left:
        following = [row[0] and glyph == "*"] + [False] * len(right)
        for column, other in enumerate(right):
            if "*" in (glyph, other):
                following[column + 1] = row[column + 1] or following[column]
            else:
                following[column + 1] = row[column] and (glyph == other or "?" in (glyph, other))
        row = following
    return row[-1]


def _differ(first: Iterable[str], second: Iterable[str]) -> bool:
    """Whether two rows of glyphs differ before a star stands in one of them."""
    for one, other in zip(first, second, strict=False):
        if "*" in (one, other):
            return False
        if one != other and "?" not in (one, other):
            return True
    return False


def _glyphs(component: str) -> list[str]:
    """A component as single characters, ``?`` and ``*``; a class becomes ``?``."""
    glyphs: list[str] = []
    index = 0
    while index < len(component):
        end = _class_end(component, index) if component[index] == "[" else None
        glyphs.append("?" if end is not None else component[index])
        index = index + 1 if end is None else end + 1
    return glyphs
