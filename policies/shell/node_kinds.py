"""Kinds of nodes of tree-sitter-bash that are believed, and what to call those that are not."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

CONTAINERS: Final = frozenset(
    {
        "program",
        "list",
        "pipeline",
        "subshell",
        "compound_statement",
        "if_statement",
        "elif_clause",
        "else_clause",
        "while_statement",
        "for_statement",
        "do_group",
        "negated_command",
        "redirected_statement",
    }
)
LOOPS: Final = frozenset({"while_statement", "for_statement", "c_style_for_statement", "function_definition"})
TOKENS: Final = frozenset(
    {
        "&&", "||", ";", "|", "|&", "&", "\n", "(", ")", "{", "}", "!", "if", "then", "elif", "else", "fi", "for",
        "in", "while", "until", "do", "done",
    }
)  # fmt: skip
WORDS: Final = frozenset(
    {
        "word", "string", "raw_string", "concatenation", "number", "ansi_c_string", "translated_string",
        "brace_expression", "simple_expansion", "expansion", "command_substitution", "process_substitution",
        "arithmetic_expansion", "extglob_pattern", "regex",
    }
)  # fmt: skip
PLAIN_WORDS: Final = frozenset({"word", "string", "raw_string", "concatenation", "number"})
EXPRESSIONS: Final = frozenset({"unary_expression", "binary_expression"})
_FILES: Final = frozenset(
    {
        "-b", "-c", "-d", "-e", "-f", "-g", "-h", "-k", "-p", "-r", "-s", "-u", "-w", "-x", "-G", "-L", "-N", "-O",
        "-S", "-nt", "-ot", "-ef", "-n", "-z", "=", "==", "!=", "!",
    }
)  # fmt: skip
TESTS: Final[Mapping[tuple[str, str], frozenset[str]]] = MappingProxyType(
    {
        ("[", "]"): _FILES | {"-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-a", "-o"},
        ("[[", "]]"): _FILES | {"&&", "||"},
    }
)
"""Brackets of a test, and the operators in them that look at files and compare words. Others may run what a word holds:
``-v`` takes a subscript, and ``[[`` does arithmetic for ``-eq``."""
RESERVED: Final = frozenset(
    {
        "if", "then", "elif", "else", "fi", "for", "in", "while", "until", "do", "done", "case", "esac", "select",
        "function", "coproc", "[[", "]]", "{", "}", "!", "noglob", "nocorrect", "repeat", "foreach", "end", "always",
    }
)  # fmt: skip
WRITING: Final = frozenset({">", ">>", ">|", "&>", "&>>", ">&", "<>"})
READING: Final = frozenset({"<", "<>"})

DOUBTS: Final = {
    "command_substitution": "a command substitution",
    "process_substitution": "a process substitution",
    "expansion": "an expansion",
    "simple_expansion": "a variable",
    "arithmetic_expansion": "an arithmetic expansion",
    "brace_expression": "a brace expansion",
    "ansi_c_string": "a $'...' string",
    "function_definition": "a function definition",
    "case_statement": "a case statement",
    "test_command": "a test",
    "c_style_for_statement": "a C-style loop",
    "select": "a select loop",
    "((": "arithmetic",
    ";;": "the token ;;",
}
