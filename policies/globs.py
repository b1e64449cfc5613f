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
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from policies.paths import folded

MAX_PATTERN: Final = 512
MAX_COMPONENTS: Final = 64
_HOME: Final = "~"
_WORKSPACE: Final = "workspace"


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
    if head not in ("", _HOME, _WORKSPACE, "**"):
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


def _expression(root: str, components: Sequence[str], *, below: bool) -> str:
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


@dataclass(frozen=True)
class CompiledPaths:
    """Several patterns under one workspace and home.

    Denials compare folded (without case, compatibility-normalised) and reach everything below a match; allows are
    exact.
    """

    allowing: re.Pattern[str]
    literals: frozenset[str]
    """Folded paths that denials name without any wildcard: looked up, not searched for."""
    denying: re.Pattern[str]
    """All other denials."""
    ancestors: re.Pattern[str] = field(repr=False)
    """Directories that a pattern goes through by name: moving one away moves what it guards."""
    rooted: tuple[tuple[str, ...], ...] = field(repr=False)
    """Every pattern as folded components from the root, for comparisons of pattern with pattern."""

    def allows(self, path: str) -> bool:
        """Whether an allow with these patterns covers a normalised path."""
        return self.allowing.fullmatch(path) is not None

    def denies(self, form: str) -> bool:
        """Whether a denial with these patterns reaches a folded path."""
        end = len(form) if self.literals else 0
        while end > 0:
            if form[:end] in self.literals:
                return True
            end = form.rfind("/", 0, end)
        return self.denying.fullmatch(form) is not None

    def guards(self, form: str) -> bool:
        """Whether a folded directory lies on the named way to something denied."""
        return self.ancestors.fullmatch(form) is not None

    def reaches(self, forms: Sequence[str], *, deep: bool, whole: bool) -> bool:
        """Whether a denial reaches a path in any of its spellings, or what a part does to a directory there.

        Args:
            forms: folded spellings of the path.
            deep: everything below is read too.
            whole: the directory is moved, removed or replaced with all that is in it.
        """
        return any(
            self.denies(form)
            or (whole and self.guards(form))
            or (deep and self.meets((*(step for step in form.split("/") if step), "**")))
            for form in forms
        )

    def meets(self, glob: Sequence[str], *, below: bool = True) -> bool:
        """Whether a denial could reach a path that ``glob`` (folded components from the root) stands for.

        With ``below=False`` a pattern that does not end in ``**`` means the file itself only, not what lies below a
        directory of that name.
        """
        tail = ("**",) if below else ()
        return any(components_meet((*rooted, *tail), tuple(glob)) for rooted in self.rooted)


_NOTHING: Final = re.compile(r"(?!)")


@lru_cache(maxsize=2048)
def compile_paths(patterns: tuple[PathPattern, ...], workspace: str, home: str) -> CompiledPaths:
    """Bind patterns to a workspace and a home."""
    roots = {"/": "", _HOME: home.rstrip("/"), _WORKSPACE: workspace.rstrip("/")}

    def union(expressions: list[str]) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{text})" for text in expressions), re.DOTALL) if expressions else _NOTHING

    allowing: list[str] = []
    literals: set[str] = set()
    denying: list[str] = []
    ancestors: list[str] = []
    rooted: list[tuple[str, ...]] = []
    for pattern in patterns:
        root = roots[pattern.anchor]
        lower_root = folded(root)
        lower = tuple(folded(component) for component in pattern.components)
        allowing.append(_expression(root, pattern.components, below=False) or "/")
        stem = lower[:-1] if lower[-1:] == ("**",) else lower
        if lower_root + "".join(stem) and not any(character in part for part in stem for character in "*?["):
            literals.add(lower_root + "".join(f"/{part}" for part in stem))
        else:
            denying.append(_expression(lower_root, lower, below=True) or "/")
        ancestors.extend(
            _expression(lower_root, lower[: end + 1], below=False)
            for end, component in enumerate(lower[:-1])
            if component != "**"
        )
        steps = [part for part in lower_root.split("/") if part]
        ancestors.extend("".join(f"/{re.escape(step)}" for step in steps[: end + 1]) for end in range(len(steps)))
        rooted.append((*steps, *lower))
    return CompiledPaths(union(allowing), frozenset(literals), union(denying), union(ancestors), tuple(rooted))


UNDOTTED: Final = "\x01"
"""Prefix of a component whose wildcard does not match a leading dot, as in a shell."""


def components_meet(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether some path matches both of two globs given as components. Exact for ``**``, careful within components."""
    for one, other in zip(first, second, strict=False):
        if one == "**" or other == "**":
            break
        if not _names_meet(one, other):
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
                following[column + 1] = row[column] and _names_meet(component, other)
        row = following
    return row[width]


@lru_cache(maxsize=4096)
def _names_meet(first: str, second: str) -> bool:
    """Whether some name matches both of two single-component globs. A class counts as any character."""
    if second.startswith(UNDOTTED):
        if first.startswith("."):
            return False
        second = second[1:]
    left, right = _glyphs(first), _glyphs(second)
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


def _glyphs(component: str) -> list[str]:
    """A component as single characters, ``?`` and ``*``; a class becomes ``?``."""
    glyphs: list[str] = []
    index = 0
    while index < len(component):
        end = _class_end(component, index) if component[index] == "[" else None
        glyphs.append("?" if end is not None else component[index])
        index = index + 1 if end is None else end + 1
    return glyphs
