"""The tools of the Claude Code CLI: their names and their input fields.

Source: the tool schemas that CLI 2.1.330 sends to the Messages API, captured from the bundled binary. A field that is
not listed here is unknown, and a call that carries it is denied (row R20): what a new field would do is not known.
``tests/integration`` compares this table with the bundled CLI, so that a new pin shows what changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final


class FieldKind(StrEnum):
    """What a field's value means to the engine."""

    TEXT = "text"
    """Free text: content, prompts, search expressions. Not looked into."""
    NUMBER = "number"
    FLAG = "flag"
    LIST = "list"
    OBJECT = "object"
    ANY = "any"
    READ_PATH = "read path"
    WRITE_PATH = "write path"
    FILE_GLOB = "file glob"
    """A pattern of file names below the call's path."""
    COMMAND = "command"
    URL = "url"
    HOSTS = "hosts"


@dataclass(frozen=True)
class Tool:
    """One tool.

    Args:
        name: how policies call it.
        fields: input fields and what they mean.
        required: fields without which the engine cannot tell what the call does.
        offered: whether the explicit tool list may name it.
        searches: it reads below a directory, the start of which defaults to the working directory.
    """

    name: str
    fields: Mapping[str, FieldKind]
    required: tuple[str, ...] = ()
    offered: bool = True
    searches: bool = False


_T, _N, _F = FieldKind.TEXT, FieldKind.NUMBER, FieldKind.FLAG

_TOOLS: Final = (
    Tool("Read", {"file_path": FieldKind.READ_PATH, "offset": _N, "limit": _N, "pages": _T, "allow_large": _F},
         ("file_path",)),
    Tool("Write", {"file_path": FieldKind.WRITE_PATH, "content": _T}, ("file_path",)),
    Tool("Edit", {"file_path": FieldKind.WRITE_PATH, "old_string": _T, "new_string": _T, "replace_all": _F},
         ("file_path",)),
    Tool("MultiEdit", {"file_path": FieldKind.WRITE_PATH, "edits": FieldKind.LIST}, ("file_path",)),
    Tool("NotebookEdit", {"notebook_path": FieldKind.WRITE_PATH, "cell_id": _T, "new_source": _T, "cell_type": _T,
                          "edit_mode": _T}, ("notebook_path",)),
    Tool("Glob", {"pattern": FieldKind.FILE_GLOB, "path": FieldKind.READ_PATH}, ("pattern",), searches=True),
    Tool("Grep", {"pattern": _T, "path": FieldKind.READ_PATH, "glob": FieldKind.FILE_GLOB, "output_mode": _T,
                  "-B": _N, "-A": _N, "-C": _N, "context": _N, "-n": _F, "-i": _F, "-o": _F, "type": _T,
                  "head_limit": _N, "offset": _N, "multiline": _F}, ("pattern",), searches=True),
    Tool("LS", {"path": FieldKind.READ_PATH, "ignore": FieldKind.LIST}, ("path",), searches=True),
    Tool("Bash", {"command": FieldKind.COMMAND, "timeout": _N, "description": _T, "run_in_background": _F,
                  "dangerouslyDisableSandbox": _F}, ("command",)),
    Tool("BashOutput", {"bash_id": _T, "filter": _T}),
    Tool("KillShell", {"shell_id": _T}),
    Tool("TaskOutput", {"task_id": _T, "block": _F, "timeout": _N}),
    Tool("TaskStop", {"task_id": _T, "shell_id": _T}),
    Tool("Agent", {"description": _T, "prompt": _T, "subagent_type": _T, "model": _T, "effort": _T,
                   "run_in_background": _F}, ("prompt",)),
    Tool("TodoWrite", {"todos": FieldKind.LIST}),
    Tool("TaskCreate", {"subject": _T, "description": _T, "activeForm": _T, "metadata": FieldKind.OBJECT}),
    Tool("TaskGet", {"taskId": _T}),
    Tool("TaskList", {}),
    Tool("TaskUpdate", {"taskId": _T, "subject": _T, "description": _T, "activeForm": _T, "status": _T,
                        "addBlocks": FieldKind.LIST, "addBlockedBy": FieldKind.LIST, "owner": _T,
                        "metadata": FieldKind.OBJECT}),
    Tool("WebFetch", {"url": FieldKind.URL, "prompt": _T, "offset": _N}, ("url",)),
    Tool("WebSearch", {"query": _T, "allowed_domains": FieldKind.HOSTS, "blocked_domains": FieldKind.LIST}, ("query",)),
    Tool("Skill", {"skill": _T, "args": _T}, ("skill",)),
    # Always allowed: the first delivers the answer that ``output_schema`` asked for, the second only loads the
    # descriptions of tools that are themselves judged when called.
    Tool("StructuredOutput", {}, offered=False),
    Tool("ToolSearch", {"query": _T, "max_results": _N}, offered=False),
    # Never offered: they start turns, wait for a person or leave the workspace behind Rookery's back (DESIGN
    # section 4). Known by name so that a policy that allows them is refused with the reason.
    *(
        Tool(name, {}, offered=False)
        for name in (
            "AskUserQuestion", "CronCreate", "CronDelete", "CronList", "DesignSync", "EnterPlanMode", "EnterWorktree",
            "ExitPlanMode", "ExitWorktree", "ListAgents", "Monitor", "RemoteTrigger", "ReportFindings",
            "ScheduleWakeup", "SendMessage", "SendUserMessage", "Workflow",
        )
    ),
)  # fmt: skip

TOOLS: Final[Mapping[str, Tool]] = MappingProxyType({tool.name: tool for tool in _TOOLS})
"""Every built-in tool that policies know, by name."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType({"Task": "Agent"})
"""Names under which the CLI also gives a tool: its init message says Task, its requests say Agent."""

ALWAYS_ALLOWED: Final = frozenset({"StructuredOutput", "ToolSearch"})

NEVER_OFFERED: Final = frozenset(tool.name for tool in _TOOLS if not tool.offered) - ALWAYS_ALLOWED

OLD_NAMES: Final = frozenset({"MultiEdit", "LS", "TodoWrite", "BashOutput", "KillShell", "TaskOutput"})
"""Tools of other CLI versions: judged when called, but not put on the explicit list, for this CLI has none of them."""

OPEN_INPUT: Final = frozenset({"StructuredOutput"})
"""Tools whose input has the shape of somebody's schema, so that no field is unknown."""

MCP_TOOL: Final = re.compile(r"mcp__([A-Za-z0-9_.-]+?)__([A-Za-z0-9_.-]+)")
"""Name of a tool of an MCP server: server, then tool."""


def canonical_name(name: str) -> str:
    """The name under which policies know a tool."""
    return ALIASES.get(name, name)


def is_known(name: str) -> bool:
    """Whether a call of this tool can be judged at all."""
    return name in TOOLS or MCP_TOOL.fullmatch(name) is not None


_TYPES: Final[Mapping[FieldKind, tuple[type, ...]]] = MappingProxyType(
    {
        FieldKind.NUMBER: (int, float, str),
        FieldKind.FLAG: (bool, str),
        FieldKind.LIST: (list, tuple),
        FieldKind.HOSTS: (list, tuple),
        FieldKind.OBJECT: (dict,),
    }
)


def input_fault(tool: Tool, given: Mapping[str, Any]) -> str | None:
    """What is wrong with an input's shape, or None.

    Numbers and flags may come as text, for models send ``"10"`` and ``"true"`` and the CLI takes them.
    """
    if tool.name in OPEN_INPUT:
        return None
    for name, value in given.items():
        kind = tool.fields.get(name)
        if kind is None:
            return f"{tool.name} has no input field {str(name)[:40]!r} that this policy engine knows"
        if value is None or kind is FieldKind.ANY:
            continue
        if not isinstance(value, _TYPES.get(kind, (str,))):
            return f"the field {name} of {tool.name} must not be of type {type(value).__name__}"
    for name in tool.required:
        if not isinstance(given.get(name), str) or not given[name]:
            return f"{tool.name} needs the field {name}"
    return None
