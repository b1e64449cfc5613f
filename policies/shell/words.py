"""Words of a shell script: what one written word becomes, when that can be known.

The source text of a word is read by a small machine of our own, independent of the grammar that found its ends: a
word that holds anything but plain characters and quotes is not known, and neither is one that the two readings
disagree about.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class WordKind(StrEnum):
    LITERAL = "literal"
    """``text`` is exactly what the command gets."""
    GLOB = "glob"
    """``text`` is a pattern: the command gets the names that match, or the pattern itself."""
    UNKNOWN = "unknown"
    """An expansion, a brace list or something else whose result is not in the script."""


@dataclass(frozen=True)
class Word:
    """One word.

    Args:
        text: its value if known, its pattern if a glob, else its source.
        kind: how much is known.
        tilde: it begins with an unquoted ``~``, which stands for the home, or has one behind ``NAME=``.
    """

    text: str
    kind: WordKind = WordKind.LITERAL
    tilde: bool = False

    @property
    def known(self) -> bool:
        """Whether ``text`` is exactly what the command gets."""
        return self.kind is WordKind.LITERAL


_SEPARATORS: Final = frozenset(" \t\n;&|<>()")
_GLOB: Final = frozenset("*?[")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,-][A-Za-z0-9_./:@%+,=-]*")
"""Words in which every character stands for itself."""
_ASSIGNED_HOME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=~(?:/|$)")
_ESCAPED_IN_DOUBLE: Final = frozenset('$`"\\')


def read_word(source: str) -> Word:
    """What one word of source text becomes."""
    if _PLAIN.fullmatch(source):
        return Word(source)
    unknown = Word(source, WordKind.UNKNOWN)
    value: list[str] = []
    index, size = 0, len(source)
    glob = brace = quoted_glob = False
    tilde = source.startswith("~")
    if tilde and size > 1 and source[1] != "/":
        return unknown
    if source.startswith("="):
        # zsh replaces =name by the program's path.
        return unknown
    while index < size:
        character = source[index]
        if character == "'":
            end = source.find("'", index + 1)
            if end < 0:
                return unknown
            piece = source[index + 1 : end]
            quoted_glob = quoted_glob or not _GLOB.isdisjoint(piece)
            value.append(piece)
            index = end + 1
        elif character == '"':
            index += 1
            while True:
                if index >= size or source[index] in "$`":
                    return unknown
                if source[index] == '"':
                    break
                if source[index] == "\\" and index + 1 < size:
                    following = source[index + 1]
                    if following in _ESCAPED_IN_DOUBLE:
                        value.append(following)
                    elif following != "\n":
                        value.append(f"\\{following}")
                    index += 2
                    continue
                quoted_glob = quoted_glob or source[index] in _GLOB
                value.append(source[index])
                index += 1
            index += 1
        elif character == "\\":
            if index + 1 >= size:
                return unknown
            following = source[index + 1]
            if following != "\n":
                quoted_glob = quoted_glob or following in _GLOB
                value.append(following)
            index += 2
        elif character in "$`" or character in _SEPARATORS:
            return unknown
        elif character == "~" and index and source[index - 1] in "=:":
            # Bash puts the home here too where a word looks like an assignment, as in "dd of=~/x".
            tilde = _ASSIGNED_HOME.match(source) is not None and index == source.index("=") + 1
            if not tilde:
                return unknown
            value.append(character)
            index += 1
        else:
            glob = glob or character in _GLOB
            brace = brace or character == "{"
            if brace and (character == "," or source.startswith("..", index)):
                return unknown
            value.append(character)
            index += 1
    text = "".join(value)
    if glob and quoted_glob:
        # Part of the pattern is meant literally; the two cannot be told apart in one text.
        return unknown
    return Word(text, WordKind.GLOB if glob else WordKind.LITERAL, tilde)
