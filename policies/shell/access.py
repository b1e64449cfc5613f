"""Which files a program's words name, and how it uses them, as far as that shows from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from policies.shell import programs
from policies.shell.invocations import Invocation, has_flag
from policies.shell.words import Word, WordKind

MAX_OPERANDS: Final = 2000
_GIVEN_PATTERN: Final = ("-e", "-f", "--regexp", "--file", "--files")
_IN_CODE: Final = re.compile(r"[\w.~/@%+-]{1,512}")
_URL_HOST: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:[^/\s@'\"]*@)?([A-Za-z0-9.-]+)|@?([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)"
)


@dataclass(frozen=True)
class Operand:
    """A path that a command names.

    Args:
        text: the path, or a glob.
        glob: it is a glob of the shell.
        writes: the program may write it.
        reads: the program may read it.
        deep: the program reads everything below it.
        whole: the program moves, removes or replaces a directory with all that is in it.
        plain: it is a word of its own, not a piece of one.
    """

    text: str
    glob: bool = False
    writes: bool = True
    reads: bool = True
    deep: bool = False
    whole: bool = False
    plain: bool = True


def operands(invocation: Invocation) -> tuple[Operand, ...]:
    """Every path that the words may name, for denials: a word that is no path merely names a file that is not there.

    The program itself counts as read, for it is loaded.
    """
    name = invocation.name
    reads_only = name in programs.READERS and invocation.danger is None
    deep = _is_deep(name, [word.text for word in invocation.words])
    pattern = _search_pattern(name, invocation)
    found: dict[Operand, None] = {}
    for index, word in enumerate(invocation.words[:MAX_OPERANDS]):
        if index == 0:
            if "/" in word.text and word.known:
                found[Operand(word.text, writes=False)] = None
            continue
        if word.kind is WordKind.UNKNOWN:
            continue
        glob = word.kind is WordKind.GLOB
        for place, text in enumerate(_pieces(word)):
            reaches = deep and index != pattern
            found[Operand(text, glob, not reads_only, True, reaches, name in programs.MOVES, plain=place == 0)] = None
        if name in programs.INTERPRETERS and invocation.danger is not None:
            for piece in _IN_CODE.findall(word.text)[:MAX_OPERANDS]:
                found[Operand(piece, plain=False)] = None
    if _searches_here(name, deep, invocation):
        found[Operand(".", writes=False, deep=True, plain=False)] = None
    return tuple(found)


def _search_pattern(name: str, invocation: Invocation) -> int | None:
    """Which word of a search is what it looks for and no place, if one is."""
    texts = [word.text for word in invocation.words]
    if name not in programs.SEARCHES or any(has_flag(_GIVEN_PATTERN, text) for text in texts[1:]):
        return None
    return next((index for index, text in enumerate(texts) if index and not text.startswith("-")), None)


def _searches_here(name: str, deep: bool, invocation: Invocation) -> bool:
    """Whether a search was given no place, so that it takes the working directory."""
    if not deep or name not in programs.SEARCHES or (invocation.command.fed and "grep" not in name):
        return False
    return sum(1 for word in invocation.words[1:] if not word.text.startswith("-")) < 2


def _pieces(word: Word) -> Iterator[str]:
    for piece in _spelled(word):
        yield piece
        if piece[:1] in ("@", "<") and len(piece) > 1:
            # How curl and others name a file to read from.
            yield piece[1:]


def _spelled(word: Word) -> Iterator[str]:
    """The word, and the parts of it that may be a path: an option's value, ``@file``, ``if=file``, ``rev:file``."""
    text = word.text
    if not text.startswith("-"):
        yield text
    elif len(text) > 2 and not text.startswith("--"):
        yield text[2:]
    if "=" in text:
        yield text.partition("=")[2]
    if ":" in text:
        yield text.rpartition(":")[2].removeprefix("//") if "://" not in text else text.partition("://")[2]


def _is_deep(name: str, texts: list[str]) -> bool:
    flags = programs.RECURSIVE.get(name)
    if flags is None:
        return False
    return not flags or any(has_flag(flags, text) for text in texts[1:])


def written(invocation: Invocation) -> tuple[Word, ...]:
    """The words that name files which the program certainly writes: each is a write of its own (rows R14, R16)."""
    name, words = invocation.name, invocation.words[1:]
    found: list[Word] = []
    flags = programs.OUTPUT_FLAGS.get(name, ())
    plain: list[Word] = []
    ended = False
    index = 0
    while index < len(words):
        word = words[index]
        text = word.text
        if not ended and text == "--":
            ended = True
        elif not ended and text.startswith("-") and len(text) > 1:
            flag, equals, value = text.partition("=")
            if flag in flags:
                if equals:
                    found.append(Word(value, word.kind))
                elif index + 1 < len(words):
                    index += 1
                    found.append(words[index])
            elif len(text) > 2 and text[:2] in flags and not text.startswith("--"):
                found.append(Word(text[2:], word.kind))
        else:
            plain.append(word)
        index += 1
    if name == "dd":
        found.extend(Word(word.text[3:], word.kind) for word in plain if word.text.startswith("of="))
    elif name in programs.WRITES_ALL:
        found.extend(plain)
    elif name in programs.WRITES_BUT_FIRST:
        found.extend(plain[1:])
    elif name in programs.WRITES_LAST and len(plain) > 1:
        found.append(plain[-1])
    elif name == "sed" and any(re.match(r"-[nErsz]*i|--in-place", word.text) for word in words):
        found.extend(plain[1:] or plain)
    elif name == "xxd" and len(plain) > 1:
        found.append(plain[-1])
    return tuple(found)


def hosts(invocation: Invocation) -> tuple[str, ...]:
    """Host names in the words, lower case: what a URL, ``user@host`` or a bare name shows. Easily hidden."""
    found: dict[str, None] = {}
    for word in invocation.words[1:200]:
        if "." not in word.text and "://" not in word.text:
            continue
        for match in list(_URL_HOST.finditer(word.text[:4096]))[:20]:
            found[(match[1] or match[2]).lower().rstrip(".")] = None
    return tuple(found)
