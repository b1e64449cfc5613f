"""Sets of path patterns under one workspace and home: what an allow covers, and what a denial may reach.

A layer can hold hundreds of patterns, and every path of a call is held against them, so nothing is tried in vain:
a pattern without a wildcard is looked up, and one with wildcards is tried only against paths that hold the names it
spells out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Final

from policies.globs import HOME, UNDOTTED, WORKSPACE, PathPattern, components_meet, names_meet, path_expression
from policies.paths import folded

_WILD: Final = frozenset("*?[")
_NOTHING: Final = re.compile(r"(?!)")


class CompiledPaths:
    """Several patterns under one workspace and home.

    Denials compare folded (without case, compatibility-normalised) and reach everything below a match; allows are
    exact.
    """

    def __init__(self, patterns: tuple[PathPattern, ...], workspace: str, home: str) -> None:
        self._patterns = patterns
        self._roots = {"/": "", HOME: home.rstrip("/"), WORKSPACE: workspace.rstrip("/")}

    def allows(self, path: str) -> bool:
        """Whether an allow with these patterns covers a normalised path."""
        return self._allowing.fullmatch(path) is not None

    def denies(self, form: str) -> bool:
        """Whether a denial with these patterns reaches a folded path."""
        plain, wild = self._denials
        steps = form.split("/")
        return plain.leads_to(steps) or wild.match(form, steps)

    def guards(self, form: str) -> bool:
        """Whether a folded directory lies on the named way to something denied: moving it moves what it guards."""
        plain, wild = self._ancestors
        return form in plain or wild.match(form, form.split("/"))

    def reaches(self, forms: Sequence[str], *, deep: bool, whole: bool) -> bool:
        """Whether a denial reaches a path in any of its spellings, or what a part does to a directory there.

        Args:
            forms: folded spellings of the path.
            deep: everything below is read too.
            whole: the directory is moved, removed or replaced with all that is in it.
        """
        for form in forms:
            if self.denies(form) or (whole and self.guards(form)):
                return True
            if deep and self.meets((*(step for step in form.split("/") if step), "**")):
                return True
        return False

    def meets(self, glob: Sequence[str], *, below: bool = True) -> bool:
        """Whether a denial could reach a path that ``glob`` (folded components from the root) stands for.

        With ``below=False`` a pattern that does not end in ``**`` means the file itself only, not what lies below a
        directory of that name.
        """
        tail = ("**",) if below else ()
        steps = tuple(glob)
        return any(components_meet((*rooted, *tail), steps) for rooted in self._near(steps))

    def _near(self, glob: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The patterns, without those that spell out a name which no path of a glob can hold."""
        anything = "**" in glob
        wild = [step for step in glob if step[:1] == UNDOTTED or not _is_plain(step)]
        for name, several in self._rooted.items():
            if anything or name is None or name in glob or any(names_meet(name, step) for step in wild):
                yield from several

    @cached_property
    def _allowing(self) -> re.Pattern[str]:
        texts = [
            path_expression(self._roots[pattern.anchor], pattern.components, below=False) for pattern in self._patterns
        ]
        return _union(texts)

    @cached_property
    def _folded(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Root and components of each pattern, folded."""
        return tuple(
            (folded(self._roots[pattern.anchor]), tuple(folded(component) for component in pattern.components))
            for pattern in self._patterns
        )

    @cached_property
    def _denials(self) -> tuple[_Tree, _Filed]:
        """What denials reach: paths without a wildcard, with all below them, and expressions."""
        plain = _Tree()
        wild: list[tuple[str | None, str]] = []
        for root, components in self._folded:
            stem = components[:-1] if components[-1:] == ("**",) else components
            if root + "".join(stem) and all(map(_is_plain, stem)):
                plain.add(root + "".join(f"/{part}" for part in stem))
            else:
                wild.append((_name_of(components), path_expression(root, components, below=True)))
        return plain, _Filed(wild)

    @cached_property
    def _ancestors(self) -> tuple[frozenset[str], _Filed]:
        """Directories that a pattern goes through by name: paths without a wildcard, and expressions."""
        plain: set[str] = set()
        wild: list[tuple[str | None, str]] = []
        for root, components in self._folded:
            steps = [part for part in root.split("/") if part]
            plain.update("".join(f"/{step}" for step in steps[: end + 1]) for end in range(len(steps)))
            for end, component in enumerate(components[:-1]):
                way = components[: end + 1]
                if component == "**":
                    continue
                if all(map(_is_plain, way)):
                    plain.add(root + "".join(f"/{part}" for part in way))
                else:
                    wild.append((_name_of(way), path_expression(root, way, below=False)))
        return frozenset(plain), _Filed(wild)

    @cached_property
    def _rooted(self) -> dict[str | None, list[tuple[str, ...]]]:
        """Every pattern as folded components from the root, by a name that it spells out."""
        found: dict[str | None, list[tuple[str, ...]]] = {}
        for root, components in self._folded:
            steps = (part for part in root.split("/") if part)
            found.setdefault(_name_of(components), []).append((*steps, *components))
        return found


@lru_cache(maxsize=2048)
def compile_paths(patterns: tuple[PathPattern, ...], workspace: str, home: str) -> CompiledPaths:
    """Bind patterns to a workspace and a home."""
    return CompiledPaths(patterns, workspace, home)


class _Tree:
    """Paths without a wildcard, found by walking down them."""

    def __init__(self) -> None:
        self._below: dict[str, _Tree] = {}
        self._ends = False

    def add(self, path: str) -> None:
        """Take a path up."""
        node = self
        for step in path.split("/"):
            node = node._below.setdefault(step, _Tree())
        node._ends = True

    def leads_to(self, steps: list[str]) -> bool:
        """Whether a path, as its components, is one of these or lies below one."""
        node = self
        for step in steps:
            following = node._below.get(step)
            if following is None:
                return False
            if following._ends:
                return True
            node = following
        return False


class _Filed:
    """Expressions, each filed under a name that every path it matches holds as a component, or under None."""

    def __init__(self, entries: Iterable[tuple[str | None, str]]) -> None:
        self._texts: dict[str | None, list[str]] = {}
        for name, text in entries:
            self._texts.setdefault(name, []).append(text)
        self._compiled: dict[str | None, re.Pattern[str]] = {}

    def match(self, path: str, steps: list[str]) -> bool:
        """Whether one of them matches the whole of a path, which is given as a text and as its components."""
        texts = self._texts
        if None in texts and self._expression(None).fullmatch(path):
            return True
        if texts.keys().isdisjoint(steps):
            return False
        return any(name in texts and self._expression(name).fullmatch(path) for name in steps)

    def _expression(self, name: str | None) -> re.Pattern[str]:
        compiled = self._compiled.get(name)
        if compiled is None:
            # Not before it is needed: of many hundred expressions a session meets a few.
            compiled = self._compiled[name] = _union(self._texts[name])
        return compiled


def _union(expressions: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{text or '/'})" for text in expressions), re.DOTALL) if expressions else _NOTHING


def _is_plain(component: str) -> bool:
    return _WILD.isdisjoint(component)


def _name_of(components: tuple[str, ...]) -> str | None:
    """The longest component that stands for itself alone, or None. Folding can bring a slash into one."""
    names = (component for component in components if _is_plain(component) and "/" not in component)
    return max(names, key=len, default=None)
