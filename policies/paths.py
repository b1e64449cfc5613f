"""Paths as the sandbox would resolve them: component by component, with both ends of every symbolic link.

Nothing here touches a file system: what is known of links comes from :class:`policies.types.Facts`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from policies.types import Facts

MAX_PATH: Final = 4096
"""PATH_MAX of Linux: a longer path fails in the kernel, so none is worth judging."""

MAX_LINKS: Final = 40
"""How many symbolic links the kernel follows in one look-up (MAXSYMLINKS)."""

_MAGIC: Final = re.compile(r"/proc/(?:self|thread-self|\d+)(?:/task/\d+)?/(root|cwd)")
_FOREIGN: Final = re.compile(r"[A-Za-z]:|.*\\", re.DOTALL)


class UnresolvablePathError(ValueError):
    """A path that cannot be judged; the text says why and what to write instead."""


@dataclass(frozen=True)
class ResolvedPath:
    """All the places that one written path may mean.

    Args:
        text: the path as written.
        candidates: absolute, normalised paths: the name itself and every end of the links on the way, without
            repetition. An allow must hold for each of them, a deny for any.
    """

    text: str
    candidates: tuple[str, ...]


def normalise(path: str) -> str:
    """An absolute path without ``.``, ``..``, empty components and trailing slash, links left alone."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def hidden_character(text: str, *, allowed: str = "") -> str | None:
    """The name of the first control or format character in a text, or None (row R18).

    Such characters make a text look other than it is: NUL, CR, escape, zero-width, bidirectional marks, BOM.
    """
    if text.isprintable():
        return None
    for character in text:
        if character.isascii():
            if (character < " " or character == "\x7f") and character not in allowed:
                return f"U+{ord(character):04X}"
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            return f"U+{ord(character):04X}"
    return None


def resolve(text: str, facts: Facts, *, cwd: str | None = None, from_shell: bool = False) -> ResolvedPath:
    """What a path written by the agent may mean.

    Args:
        text: as written: absolute, relative to ``cwd``, or beginning with ``~/``.
        facts: workspace, home and links.
        cwd: an absolute path; None means where the call starts.
        from_shell: the path comes from a shell command, where a backslash is a character like any other.

    Raises:
        UnresolvablePathError: it is empty, too long, foreign (a drive, UNC, backslashes), names another user's home,
            holds control or format characters, or runs in a circle of links.
    """
    if not text:
        raise UnresolvablePathError("the path is empty")
    if len(text) > MAX_PATH:
        raise UnresolvablePathError(f"the path is longer than {MAX_PATH} characters")
    if (hidden := hidden_character(text)) is not None:
        raise UnresolvablePathError(f"the path holds the control or format character {hidden}")
    if not from_shell and _FOREIGN.match(text):
        raise UnresolvablePathError("the path is not a POSIX path: use forward slashes and no drive letter")
    if text == "~" or text.startswith("~/"):
        text = facts.home + text[1:]
    elif text.startswith("~"):
        raise UnresolvablePathError("the path names the home of another user: write it out")
    absolute = text if text.startswith("/") else f"{cwd or facts.cwd or facts.workspace}/{text}"
    lexical = normalise(absolute)
    if isinstance(facts.links, Mapping) and not facts.links and not lexical.startswith(("/proc/", "/dev/fd")):
        return ResolvedPath(text, (lexical,))
    found = [lexical]
    # The CLI normalises ".." before it opens a path, a shell leaves it to the kernel, which applies it to the
    # link's target: both readings count.
    _follow(absolute, facts, found)
    if "/../" in absolute or absolute.endswith("/.."):
        _follow(lexical, facts, found)
    return ResolvedPath(text, tuple(dict.fromkeys(found)))


def _follow(path: str, facts: Facts, found: list[str]) -> None:
    """Walk a path as the kernel does and note every name met at its end."""
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    # Ever longer paths from the root to where the walk stands.
    current = [""]
    hops = 0
    while pending:
        part = pending.pop()
        if part == "..":
            if len(current) > 1:
                current.pop()
            continue
        here = f"{current[-1]}/{part}"
        if len(here) > MAX_PATH:
            raise UnresolvablePathError(f"the path is longer than {MAX_PATH} characters")
        target = facts.link(here)
        if target is None and here == "/dev/fd":
            target = "/proc/self/fd"
        if target is None and (magic := _MAGIC.fullmatch(here)) is not None:
            # Links that the kernel makes: to the sandbox's root, and to where a process works.
            target = "/" if magic[1] == "root" else facts.cwd or facts.workspace
        if target is None:
            current.append(here)
            continue
        hops += 1
        if hops > MAX_LINKS or not target or len(target) > MAX_PATH:
            raise UnresolvablePathError("the path runs through too many symbolic links")
        # The link itself, with what follows it, is one end; the other is found by walking on from its target.
        found.append(normalise("/".join([here, *reversed(pending)])))
        if target.startswith("/"):
            current = [""]
        pending.extend(step for step in reversed(target.split("/")) if step not in ("", "."))
    found.append(current[-1] or "/")


def folded(text: str) -> str:
    """The form in which denials compare names: compatibility-normalised and without case (rows F10 and R18)."""
    return text if text.isascii() and text.islower() else unicodedata.normalize("NFKC", text).casefold()


def denial_forms(candidate: str) -> tuple[str, ...]:
    """The spellings under which a path is held against a denial: folded, and percent-decoded if that differs."""
    plain = folded(candidate)
    if "%" not in candidate:
        return (plain,)
    return (plain, folded(normalise(unquote(candidate, errors="replace"))))


def is_below(path: str, root: str) -> bool:
    """Whether a normalised path is ``root`` or lies in it, compared by components (row F02)."""
    return root == "/" or path == root or path.startswith(f"{root}/")
