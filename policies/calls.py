"""Calls written for people: ``Read(./.env)``, ``Bash(git push)``, ``WebFetch({"url": ...})``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from policies.catalogue import TOOLS, canonical_name
from policies.types import ToolRequest

_CALL: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,127})(?:\((.*)\))?", re.DOTALL)

MAIN_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Bash": "command",
        "Read": "file_path",
        "Write": "file_path",
        "Edit": "file_path",
        "MultiEdit": "file_path",
        "NotebookEdit": "notebook_path",
        "Glob": "pattern",
        "Grep": "pattern",
        "LS": "path",
        "WebFetch": "url",
        "WebSearch": "query",
        "Agent": "subagent_type",
        "Skill": "skill",
    }
)
"""The field that a call's bare argument means."""


def parse_call(text: str, role: str | None = None) -> ToolRequest:
    """Read a written call.

    Raises:
        ValueError: it is not one; the text says how to write it.
    """
    match = _CALL.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:60]!r} is not a call: write Tool(argument) or Tool({{json}})")
    name, argument = canonical_name(match[1]), match[2]
    given: dict[str, object] = {}
    if argument is not None and argument.startswith("{") and argument.endswith("}"):
        try:
            loaded = json.loads(argument)
        except (ValueError, RecursionError):
            loaded = None
        if isinstance(loaded, dict):
            return ToolRequest(name, loaded, role)
    if argument:
        field = MAIN_FIELDS.get(name)
        if field is None:
            raise ValueError(f"{name} has no main field: write {name}({{...}}) with its input as JSON")
        given[field] = argument
    # What the engine needs and the short form leaves out.
    tool = TOOLS.get(name)
    for field in tool.required if tool is not None else ():
        given.setdefault(field, "example")
    return ToolRequest(name, given, role)
