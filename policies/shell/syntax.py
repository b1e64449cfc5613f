"""Scripts read with tree-sitter-bash, on an allow-list of node kinds.

What the grammar finds is believed only where it can be checked: words are read again by :mod:`policies.shell.words`,
what lies between two nodes must be blank, a here-document must end where its delimiter says. Everything else is a
*doubt*, and a script with a doubt is not provable; what it visibly runs is listed all the same, for denials.

Time is bounded: the parse by :mod:`policies.shell.grammar`, the walk by a number of nodes. Nothing here recurses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from policies.shell.grammar import parse
from policies.shell.node_kinds import (
    CONTAINERS,
    DOUBTS,
    EXPRESSIONS,
    LOOPS,
    PLAIN_WORDS,
    READING,
    RESERVED,
    TESTS,
    TOKENS,
    WORDS,
    WRITING,
)
from policies.shell.script import Assignment, BrokenScriptError, Redirect, Script, SimpleCommand
from policies.shell.words import Word, WordKind, read_word

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_NODES: Final = 40_000
MAX_COMMANDS: Final = 400
MAX_DEPTH: Final = 200

_WORD_GAP: Final = re.compile(rb"(?:[ \t]|\\\n)*[ \t](?:[ \t]|\\\n)*")
_LOOSE_GAP: Final = re.compile(rb"(?:[ \t\n]|\\\n(?=[ \t\n]))*")
_JOINED_LINES: Final = re.compile(rb"[^ \t\n]\\\n[^ \t\n]")
_TIGHT_GAP: Final = re.compile(rb"[ \t]*")
_DELIMITER: Final = re.compile(r"""(['"]?)([A-Za-z_][A-Za-z0-9_]*)\1""")


def read_script(text: str) -> Script:
    """Take a script apart.

    Raises:
        BrokenScriptError: it is too large or too deeply nested, or the grammar cannot read it.
    """
    source = text.encode("utf-8", "surrogatepass")
    return _Reader(source).read(parse(source))


@dataclass(frozen=True)
class _Place:
    """Where in the script a node stands."""

    depth: int = 0
    in_loop: bool = False
    fed: bool = False

    def inside(self, node: Node) -> _Place:
        return _Place(self.depth + 1, self.in_loop or node.type in LOOPS, self.fed)


def _placed(command: SimpleCommand, place: _Place) -> SimpleCommand:
    if not place.in_loop and not place.fed:
        return command
    return replace(command, in_loop=place.in_loop, fed=command.fed or place.fed)


def _parts(nodes: list[Node]) -> Iterator[Node]:
    """The words and operators of an expression, in their order."""
    waiting = nodes[::-1]
    while waiting:
        node = waiting.pop()
        if node.type in EXPRESSIONS:
            waiting.extend(reversed(node.children))
        else:
            yield node


class _Reader:
    """Walks one tree and collects commands and doubts."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._commands: list[SimpleCommand] = []
        self._doubts: dict[str, None] = {}
        self._pending: list[tuple[Node | SimpleCommand, _Place]] = []
        self._heredocs = 0

    def read(self, root: Node) -> Script:
        if _JOINED_LINES.search(self._source):
            self._doubt("a line continuation within a word")
        self._pending.append((root, _Place()))
        seen = 0
        while self._pending:
            node, place = self._pending.pop()
            if isinstance(node, SimpleCommand):
                self._commands.append(node)
                continue
            seen += 1
            if seen > MAX_NODES or len(self._commands) > MAX_COMMANDS:
                raise BrokenScriptError("the command has too many parts: put it into a script file")
            if place.depth > MAX_DEPTH:
                raise BrokenScriptError("the command is nested too deeply")
            self._visit(node, place)
        return Script(tuple(self._commands), tuple(self._doubts))

    def _doubt(self, reason: str) -> None:
        self._doubts.setdefault(reason)

    def _text(self, node: Node) -> str:
        return self._source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def _check_token(self, node: Node) -> None:
        # The grammar's scanner can swallow a word into an operator: "-x<<" has been seen as "<<".
        if self._source[node.start_byte : node.end_byte] != node.type.encode():
            self._doubt("an operator that is not clearly apart")

    def _visit(self, node: Node, place: _Place) -> None:
        kind = node.type
        if kind == "comment":
            self._check_comment(node)
        elif kind == "command":
            self._command(node, place)
        elif kind in ("declaration_command", "unset_command"):
            self._declaration(node, place)
        elif kind in ("variable_assignment", "variable_assignments"):
            found = node.children if kind == "variable_assignments" else [node]
            self._emit(SimpleCommand(assignments=self._assignments(found, place)), place)
        elif kind == "test_command":
            self._test(node, place)
        elif kind == "redirected_statement":
            self._redirected(node, place)
        elif kind in CONTAINERS:
            self._container(node, place)
        elif node.is_named:
            # Whatever else: not proved, but what it holds is looked through for commands.
            if kind not in WORDS and kind not in ("variable_name", "special_variable_name", "string_content"):
                self._doubt(DOUBTS.get(kind, f"{kind.replace('_', ' ')}"))
            self._look_through(node, place)

    def _look_through(self, node: Node, place: _Place) -> None:
        self._pending.extend((child, place.inside(node)) for child in reversed(node.children) if child.child_count)

    def _emit(self, command: SimpleCommand, place: _Place) -> None:
        self._commands.append(_placed(command, place))

    def _later(self, command: SimpleCommand, place: _Place) -> None:
        """Note a command behind all that is put on the stack after this."""
        self._pending.append((_placed(command, place), place))

    def _container(self, node: Node, place: _Place) -> None:
        inner = place.inside(node)
        end = node.start_byte
        below: list[tuple[Node, _Place]] = []
        for index, child in enumerate(node.children):
            if not child.is_named:
                self._check_token(child)
                if child.type not in TOKENS:
                    self._doubt(DOUBTS.get(child.type, f"the token {child.type}"))
            # Behind a here-document its text stands between the nodes; that has a check of its own.
            if not self._heredocs and not _LOOSE_GAP.fullmatch(self._source, end, child.start_byte):
                self._doubt("text that the grammar skipped")
            end = child.end_byte
            if node.type == "for_statement" and child.type in WORDS:
                self._word(child, inner)
            elif child.is_named and child.type != "variable_name":
                fed = node.type == "pipeline" and index > 0
                below.append((child, replace(inner, fed=inner.fed or fed)))
        self._pending.extend(reversed(below))
        if not _LOOSE_GAP.fullmatch(self._source, end, node.end_byte) and not self._heredocs:
            self._doubt("text that the grammar skipped")

    def _check_comment(self, node: Node) -> None:
        start = node.start_byte
        before = self._source[start - 1 : start] if start else b"\n"
        escaped = start > 1 and self._source[start - 2 : start - 1] == b"\\"
        if before not in (b" ", b"\t", b"\n", b";", b"&", b"|", b"(", b")") or escaped:
            self._doubt("a comment that may be part of a word")

    def _word(self, node: Node, place: _Place) -> Word:
        word = read_word(self._text(node))
        if word.kind is WordKind.UNKNOWN:
            self._doubt(DOUBTS.get(node.type, "a word with an expansion"))
        if node.type not in ("word", "raw_string", "number") and node.child_count:
            self._look_through(node, place)
        return word

    def _assignments(self, nodes: list[Node], place: _Place) -> tuple[Assignment, ...]:
        found = []
        for node in nodes:
            if node.type != "variable_assignment":
                self._doubt("an unusual assignment")
                self._look_through(node, place)
                continue
            name, *_ = node.children
            plain = node.children[1:2] and node.children[1].type == "="
            if plain:
                self._check_token(node.children[1])
            if name.type != "variable_name" or len(node.children) > 3 or not plain:
                self._doubt("an array or appending assignment")
                self._look_through(node, place)
                found.append(Assignment(self._text(name).split("[")[0], Word("", WordKind.UNKNOWN)))
                continue
            value = self._word(node.children[2], place) if len(node.children) == 3 else Word("")
            if len(node.children) == 3 and node.children[2].type == "array":
                self._doubt("an array or appending assignment")
            found.append(Assignment(self._text(name), value))
        return tuple(found)

    def _command(self, node: Node, place: _Place) -> None:
        self._emit(self._simple(node, place), place)

    def _simple(self, node: Node, place: _Place) -> SimpleCommand:
        words: list[Word] = []
        assigned: list[Node] = []
        redirects: list[Redirect] = []
        stdin: str | None = None
        fed = False
        end: int | None = None
        for child in node.children:
            if (
                end is not None
                and not _WORD_GAP.fullmatch(self._source, end, child.start_byte)
                and not (child.type.endswith("redirect") and _TIGHT_GAP.fullmatch(self._source, end, child.start_byte))
            ):
                self._doubt("words that are not clearly apart")
            end = child.end_byte
            if child.type == "variable_assignment":
                assigned.append(child)
            elif child.type == "command_name":
                words.append(self._word(child.children[0] if child.child_count else child, place))
            elif child.type == "file_redirect":
                redirect, more = self._file_redirect(child, place)
                redirects.extend(redirect)
                words.extend(more)
            elif child.type == "herestring_redirect":
                fed = True
                stdin = self._herestring(child, place)
            elif child.type in WORDS:
                words.append(self._word(child, place))
            else:
                self._doubt(DOUBTS.get(child.type, f"{child.type} in a command"))
                words.append(Word(self._text(child), WordKind.UNKNOWN))
                self._look_through(child, place)
        if words and (not words[0].known or words[0].text in RESERVED or not words[0].text.isascii()):
            self._doubt("a program whose name is not plain")
        return SimpleCommand(tuple(words), self._assignments(assigned, place), tuple(redirects), stdin, fed=fed)

    def _declaration(self, node: Node, place: _Place) -> None:
        keyword, *rest = node.children
        self._check_token(keyword)
        for before, after in itertools.pairwise(node.children):
            if not _WORD_GAP.fullmatch(self._source, before.end_byte, after.start_byte):
                self._doubt("words that are not clearly apart")
        words = [Word(self._text(keyword))]
        assigned = [child for child in rest if child.type == "variable_assignment"]
        for child in rest:
            if child.type != "variable_assignment":
                word = self._word(child, place)
                words.append(word)
        self._emit(SimpleCommand(tuple(words), self._assignments(assigned, place)), place)

    def _test(self, node: Node, place: _Place) -> None:
        """``[ … ]`` and ``[[ … ]]``: the program ``test`` with the same words, where those are plain."""
        opening, *inside, closing = node.children
        believed = TESTS.get((opening.type, closing.type))
        if believed is None:
            self._doubt(DOUBTS[node.type])
            self._look_through(node, place)
            return
        words = [Word("test")]
        end = opening.end_byte
        for part in (opening, *_parts(inside), closing):
            if part is not opening and not _WORD_GAP.fullmatch(self._source, end, part.start_byte):
                self._doubt("words that are not clearly apart")
            end = part.end_byte
            if part in (opening, closing):
                self._check_token(part)
            elif part.type in PLAIN_WORDS:
                words.append(self._word(part, place))
            else:
                words.append(Word(self._text(part)))
                if words[-1].text not in believed:
                    self._doubt(DOUBTS[node.type])
                    self._look_through(part, place)
        self._emit(SimpleCommand(tuple(words)), place)

    def _redirected(self, node: Node, place: _Place) -> None:
        inner = place.inside(node)
        body, *rest = node.children
        words: list[Word] = []
        redirects: list[Redirect] = []
        stdin: str | None = None
        fed = False
        following: list[Node] = []
        end = body.end_byte
        if body.type in ("file_redirect", "heredoc_redirect", "herestring_redirect"):
            rest, end = node.children, node.start_byte
        for child in rest:
            if not self._heredocs and not _TIGHT_GAP.fullmatch(self._source, end, child.start_byte):
                self._doubt("text that the grammar skipped")
            end = child.end_byte
            if child.type == "file_redirect":
                redirect, more = self._file_redirect(child, inner)
                redirects.extend(redirect)
                words.extend(more)
            elif child.type == "herestring_redirect":
                fed, stdin = True, self._herestring(child, inner)
            elif child.type == "heredoc_redirect":
                fed = True
                stdin, more_redirects, more_nodes = self._heredoc(child, inner)
                redirects.extend(more_redirects)
                following.extend(more_nodes)
            else:
                self._doubt(DOUBTS.get(child.type, f"{child.type} in a redirection"))
                self._look_through(child, inner)
        if body.type == "command":
            command = self._simple(body, inner)
            self._emit(
                replace(
                    command,
                    words=(*command.words, *words),
                    redirects=(*command.redirects, *redirects),
                    stdin=stdin if stdin is not None else command.stdin,
                    fed=fed or command.fed,
                ),
                place,
            )
        else:
            if words or fed:
                self._doubt("a here-document for more than one command")
            # The grammar hangs the redirection of a list's last command on the whole list: it comes after the body.
            self._later(SimpleCommand(tuple(words), redirects=tuple(redirects), stdin=stdin, fed=fed), place)
            if body not in rest:
                self._pending.append((body, inner))
        self._pending.extend((child, replace(inner, fed=True)) for child in reversed(following))

    def _file_redirect(self, node: Node, place: _Place) -> tuple[list[Redirect], list[Word]]:
        """The redirection, and words of the command that the grammar hung behind its target."""
        operator = ""
        targets: list[Word] = []
        before = self._source[max(node.start_byte - 1, 0) : node.start_byte]
        if before.isdigit() or before == b"}":
            self._doubt("a redirection that may have a descriptor")
        end: int | None = None
        for child in node.children:
            gap = _WORD_GAP if targets else _TIGHT_GAP
            if end is not None and not gap.fullmatch(self._source, end, child.start_byte):
                self._doubt("words that are not clearly apart")
            end = child.end_byte
            if child.type == "file_descriptor":
                if not self._source[child.start_byte : child.end_byte].isdigit():
                    self._doubt("an unusual file descriptor")
                continue
            if not child.is_named:
                self._check_token(child)
                operator = child.type
            else:
                targets.append(self._word(child, place))
        if operator in (">&-", "<&-"):
            if targets:
                self._doubt("words behind a closed descriptor")
            return [], targets
        if not targets:
            self._doubt("a redirection without a target")
            return [], []
        target, *more = targets
        if operator in (">&", "<&"):
            if target.known and re.fullmatch(r"\d+-?|-", target.text):
                return [], more
            if not re.match(r"[A-Za-z/._~]", target.text):
                self._doubt("a redirection that bash may read otherwise")
        if operator not in WRITING | READING:
            self._doubt(f"the redirection {operator}")
        return [Redirect(target, writes=operator in WRITING, reads=operator in READING)], more

    def _herestring(self, node: Node, place: _Place) -> str | None:
        for child in node.children:
            if not child.is_named:
                self._check_token(child)
        words = [self._word(child, place) for child in node.children if child.is_named]
        if len(words) != 1:
            self._doubt("an unusual here-string")
            return None
        return words[0].text if words[0].known else None

    def _heredoc(self, node: Node, place: _Place) -> tuple[str | None, list[Redirect], list[Node]]:
        """A here-document: its text if that is certain, and what else stands on its line."""
        self._heredocs += 1
        redirects: list[Redirect] = []
        following: list[Node] = []
        start = body = end = None
        for child in node.children:
            if not child.is_named:
                self._check_token(child)
            if child.type == "heredoc_start":
                start = child
            elif child.type == "heredoc_body":
                body = child
            elif child.type == "heredoc_end":
                end = child
            elif child.type == "file_redirect":
                redirect, more = self._file_redirect(child, place)
                redirects.extend(redirect)
                if more:
                    self._doubt("words behind a here-document")
            elif child.is_named:
                following.append(child)
                if child.type not in ("pipeline", "command", "list", "redirected_statement"):
                    self._doubt(DOUBTS.get(child.type, f"{child.type} behind a here-document"))
            elif child.type not in ("<<", "<<-", "&&", "||", "|", "|&", ";"):
                self._doubt(f"the token {child.type} behind a here-document")
        if body is not None:
            self._look_through(body, place)
        text = None if start is None or end is None else self._heredoc_text(node, start, end)
        if text is None or self._heredocs > 1:
            self._doubt("a here-document whose end is not certain")
            return None, redirects, following
        if start is not None and self._text(start)[0] not in "'\"" and re.search(r"[$`]", text):
            self._doubt("a here-document with an expansion")
            return None, redirects, following
        return text, redirects, following

    def _heredoc_text(self, node: Node, start: Node, end: Node) -> str | None:
        """The text between delimiter lines by our own reading, or None when the grammar read it otherwise."""
        delimiter = _DELIMITER.fullmatch(self._text(start))
        newline = self._source.find(b"\n", start.end_byte)
        if delimiter is None or newline < 0 or self._source[newline - 1 : newline] == b"\\":
            return None
        strips = self._source[node.start_byte : start.start_byte].startswith(b"<<-")
        name = delimiter[2].encode()
        position = newline + 1
        for line in self._source[position:].split(b"\n"):
            bare = line.lstrip(b"\t") if strips else line
            if bare == name:
                agreed = end.start_byte == position + len(line) - len(bare)
                return self._source[newline + 1 : position].decode("utf-8", "replace") if agreed else None
            position += len(line) + 1
        return None
