"""The grammar of tree-sitter-bash, in bounded time: by size, by words, by a budget of the parser's steps and reads."""

from __future__ import annotations

import itertools
import re
from functools import cache
from typing import TYPE_CHECKING, Final

from policies.shell.script import BrokenScriptError

if TYPE_CHECKING:
    from tree_sitter import Language, Node

MAX_SCRIPT: Final = 100_000
"""Longest script in bytes. A longer text belongs into a file."""

MAX_UNITS: Final = 8000
"""Most words and operators, counted everywhere, in quotes and here-documents too. The grammar's recovery from an error
takes more than quadratic time in them and cannot be stopped at its end: 16,000 cost seconds, 8,000 half a second."""

MAX_PARSER_STEPS: Final = 6000
MAX_PARSER_READS: Final = 20_000
"""Budgets of one parse, in the parser's progress reports and in chunks read, both of which bad input can multiply.
Real scripts take up to 2,600 and 3,000."""

CHUNK: Final = 256
"""Bytes handed to the parser at a time: it may ask for the same ones again and again."""

_UNIT: Final = re.compile(rb"[A-Za-z0-9_./\x80-\xff-]+|[^\sA-Za-z0-9_./\x80-\xff-]")


@cache
def _language() -> Language:
    # Imported here: the grammar is a native library, and most processes never judge a shell command.
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Language(tree_sitter_bash.language())


def parse(source: bytes) -> Node:
    """The syntax tree's root.

    Raises:
        BrokenScriptError: the text is too large, takes too long, or is not complete and valid syntax.
    """
    _check_size(source)
    from tree_sitter import Parser

    steps = reads = 0

    def chunk(offset: int, point: object) -> bytes:
        nonlocal reads
        reads += 1
        return source[offset : offset + CHUNK] if reads <= MAX_PARSER_READS else b""

    def stop(offset: int, has_error: bool) -> bool:
        nonlocal steps
        steps += 1
        return steps > MAX_PARSER_STEPS or reads > MAX_PARSER_READS

    # A parser of its own for each call: one that was stopped would go on with the old text at the next. It heeds
    # a progress callback only when it reads the text by callback too.
    try:
        tree = Parser(_language()).parse(chunk, progress_callback=stop)
    except ValueError:
        tree = None
    if tree is None or reads > MAX_PARSER_READS:
        raise BrokenScriptError("the command takes too long to parse")
    if tree.root_node.has_error:
        raise BrokenScriptError("the command is not complete and valid shell syntax")
    return tree.root_node


def _check_size(source: bytes) -> None:
    if len(source) > MAX_SCRIPT:
        raise BrokenScriptError(f"the command is longer than {MAX_SCRIPT:,} bytes: put the text into a file with Write")
    # A text of so few bytes cannot hold more of them.
    if len(source) > MAX_UNITS and sum(1 for _ in itertools.islice(_UNIT.finditer(source), MAX_UNITS + 1)) > MAX_UNITS:
        raise BrokenScriptError("the command has too many words and operators: put the text into a file with Write")
