"""Which tools are offered: toolsets by theme, and what read-only mode leaves of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from server.errors import ErrorCode, RookeryError
from tools import approvals, costs, files, sessions, simple, transcripts, undo
from tools.definition import ToolDefinition

Tools = tuple[ToolDefinition[Any, Any], ...]

ALL: Final = "all"

TOOLSETS: Final[Mapping[str, Tools]] = {
    "sessions": sessions.TOOLS,
    "transcripts": transcripts.TOOLS,
    "costs": costs.TOOLS,
    "files": files.TOOLS,
    "undo": undo.TOOLS,
    "approvals": approvals.TOOLS,
    "simple": simple.TOOLS,
}
"""The toolsets in the order in which their tools are listed."""

TOOLS: Final[Tools] = tuple(tool for name, tools in TOOLSETS.items() if name != "simple" for tool in tools)
"""What ``all`` means, and what is offered unless said otherwise: every tool but ``simple``'s, which do the same."""


def tools_of(names: Iterable[str], *, read_only: bool = False) -> Tools:
    """The tools of some toolsets, each once, in their fixed order.

    Args:
        names: toolsets; ``all`` among them means the whole of :data:`TOOLS`.
        read_only: whether only those are wanted that change nothing.

    Raises:
        RookeryError: ``invalid_argument``: an unknown toolset, or nothing is left.
    """
    wanted = set(names)
    unknown = sorted(wanted - {ALL, *TOOLSETS})
    if unknown:
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            f"toolsets: there is no toolset {unknown[0][:40]!r}; there are {', '.join((ALL, *TOOLSETS))}.",
        )
    if not wanted:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"toolsets: name at least one of {', '.join((ALL, *TOOLSETS))}.")
    chosen = tuple(
        tool
        for name, tools in TOOLSETS.items()
        if name in wanted or (ALL in wanted and name != "simple")
        for tool in tools
        if tool.read_only or not read_only
    )
    if not chosen:
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            "toolsets: none of their tools is left in read-only mode; name others, such as sessions.",
        )
    return chosen
