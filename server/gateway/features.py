"""Takes out of a request what would reach the network, files or other models behind the sandbox's back (row X06).

The Messages API can search and fetch the web, run code in containers of its own, call MCP servers and load images
from URLs: all on the provider's side, where no network policy of a sandbox holds. A grant names the features that
the policy allows; everything else goes. The lists are of what is *known to be harmless*, so that a feature of next
year is off until somebody looked at it.

What goes, goes without breaking the conversation: a tool is dropped from the list, a content block becomes a text
that says so. Only a request whose whole purpose went is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from server.gateway.refusals import forbidden


class Feature(StrEnum):
    """What the provider can do of itself, as policies name it."""

    WEB_SEARCH = "web_search"
    WEB_FETCH = "web_fetch"
    CODE_EXECUTION = "code_execution"
    """With it, containers and files of the provider."""
    MCP_SERVERS = "mcp_servers"
    URL_SOURCES = "url_sources"
    """Images and documents that the provider loads from a URL."""


FIELDS: Final = frozenset(
    {
        "cache_control",
        "context_management",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "output_format",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
"""Fields of a request that pass. Not among them, on purpose: ``speed`` and ``service_tier`` (another price),
``fallbacks`` (another model), ``inference_geo``, ``container``, ``mcp_servers``."""

_FIELD_FEATURES: Final = {"mcp_servers": Feature.MCP_SERVERS, "container": Feature.CODE_EXECUTION}

_CLIENT_TOOLS: Final = ("bash_", "text_editor_", "computer_", "memory_", "tool_search_tool_")
"""Typed tools that the client runs, and the search in the tools that the client itself sent."""

_SERVER_TOOLS: Final = (
    ("web_search", Feature.WEB_SEARCH),
    ("web_fetch", Feature.WEB_FETCH),
    ("code_execution", Feature.CODE_EXECUTION),
    ("mcp_toolset", Feature.MCP_SERVERS),
)

_BLOCKS: Final = frozenset(
    {
        "compaction",
        "connector_text",
        "document",
        "fallback",
        "image",
        "mid_conv_system",
        "redacted_thinking",
        "search_result",
        "text",
        "thinking",
        "tool_addition",
        "tool_definition",
        "tool_reference",
        "tool_removal",
        "tool_result",
        "tool_search_tool_result",
        "tool_use",
    }
)
"""Content blocks that pass whatever the policy says."""

_BLOCK_FEATURES: Final = (
    ("web_search", Feature.WEB_SEARCH),
    ("web_fetch", Feature.WEB_FETCH),
    ("code_execution", Feature.CODE_EXECUTION),
    ("bash_code_execution", Feature.CODE_EXECUTION),
    ("text_editor_code_execution", Feature.CODE_EXECUTION),
    ("container_upload", Feature.CODE_EXECUTION),
    ("mcp_tool", Feature.MCP_SERVERS),
)

_SOURCES: Final = frozenset({"base64", "text", "content"})

_NESTED: Final = ("content", "tool_changes", "source")
"""Fields of a content block that can hold further blocks. ``input`` of a tool call is data, not blocks."""

MAX_DEPTH: Final = 24
"""Deepest nesting of content blocks; the API itself knows three levels."""


@dataclass
class Filtered:
    """A request that may pass, and what was taken out of it (names only, for the log)."""

    body: dict[str, Any]
    removed: list[str] = field(default_factory=list)


def filter_body(body: Mapping[str, Any], allowed: frozenset[str]) -> Filtered:
    """The request with everything taken out that ``allowed`` does not name.

    Raises:
        Refusal: what is left would not be what was asked: only server tools, or one of them as ``tool_choice``.
    """
    filtered = Filtered({})
    for name, value in body.items():
        if name in FIELDS or _FIELD_FEATURES.get(name) in allowed:
            filtered.body[name] = value
        else:
            filtered.removed.append(f"field {_label(name)}")
    _filter_tools(filtered, allowed)
    for name in ("system", "messages"):
        if isinstance(filtered.body.get(name), list):
            filtered.body[name] = [_block(entry, allowed, filtered.removed, 0) for entry in filtered.body[name]]
    return filtered


def _filter_tools(filtered: Filtered, allowed: frozenset[str]) -> None:
    tools = filtered.body.get("tools")
    if not isinstance(tools, list):
        return
    kept = [tool for tool in tools if _tool_passes(tool, allowed)]
    if len(kept) == len(tools):
        return
    dropped = [tool for tool in tools if not _tool_passes(tool, allowed)]
    names = [_label(tool.get("name") or tool.get("type")) if isinstance(tool, dict) else "?" for tool in dropped]
    choice = filtered.body.get("tool_choice")
    chosen = choice.get("name") if isinstance(choice, dict) else None
    if not kept or (chosen is not None and chosen in [tool.get("name") for tool in dropped if isinstance(tool, dict)]):
        raise forbidden(
            f"The policy of this session does not allow tools that the model provider runs ({', '.join(names)}): "
            "they reach the network from outside the sandbox."
        )
    filtered.body["tools"] = kept
    filtered.removed += [f"tool {name}" for name in names]


def _tool_passes(tool: object, allowed: frozenset[str]) -> bool:
    if not isinstance(tool, dict):
        return False
    kind = tool.get("type")
    if kind is None or kind == "custom":
        return True
    if not isinstance(kind, str):
        return False
    if kind.startswith(_CLIENT_TOOLS):
        return True
    return any(kind.startswith(prefix) and feature in allowed for prefix, feature in _SERVER_TOOLS)


def _block(value: Any, allowed: frozenset[str], removed: list[str], depth: int) -> Any:
    """A message or content block with its forbidden parts replaced; other values as they are."""
    if depth > MAX_DEPTH:
        raise forbidden("The request nests content deeper than any conversation needs.")
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    reason = _reason(value, kind, allowed)
    if reason is not None:
        removed.append(reason)
        return {"type": "text", "text": f"[removed by the gateway: the policy does not allow {reason}]"}
    result = value
    for name in _NESTED:
        nested = value.get(name)
        if isinstance(nested, list):
            result = result | {name: [_block(entry, allowed, removed, depth + 1) for entry in nested]}
        elif name == "source" and isinstance(nested, dict) and isinstance(nested.get("content"), list):
            inner = [_block(entry, allowed, removed, depth + 1) for entry in nested["content"]]
            result = result | {name: nested | {"content": inner}}
    return result


def _reason(block: Mapping[str, Any], kind: object, allowed: frozenset[str]) -> str | None:
    """Why a block may not pass, in words that name no content; None when it may."""
    if kind is None:
        return None
    if not isinstance(kind, str):
        return "a block without a proper type"
    if kind in ("image", "document"):
        return _source_reason(block.get("source"), allowed)
    if kind in ("tool_addition", "tool_definition"):
        return None if _addition_passes(block, allowed) else "a tool that the provider runs"
    if kind in _BLOCKS:
        return None
    if kind == "server_tool_use":
        name = block.get("name")
        passes = any(isinstance(name, str) and name.startswith(p) and f in allowed for p, f in _BLOCK_FEATURES)
        passes = passes or (isinstance(name, str) and name.startswith("tool_search_tool"))
        return None if passes else "the use of a tool that the provider runs"
    if any(kind.startswith(prefix) and feature in allowed for prefix, feature in _BLOCK_FEATURES):
        return None
    return f"blocks of type {_label(kind)}"


def _addition_passes(block: Mapping[str, Any], allowed: frozenset[str]) -> bool:
    """A tool added in the midst of a conversation: defined in place, or by reference to the list of tools."""
    added = block.get("tool") if block["type"] == "tool_addition" else block
    if not isinstance(added, dict):
        return False
    if added.get("type") == "tool_reference":
        return True
    return _tool_passes(added.get("definition") if added.get("type") == "tool_definition" else added, allowed)


def _source_reason(source: object, allowed: frozenset[str]) -> str | None:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind in _SOURCES:
        return None
    if kind == "url":
        return None if Feature.URL_SOURCES in allowed else "sources by URL"
    if kind == "file":
        return None if Feature.CODE_EXECUTION in allowed else "files of the provider"
    return "a source of unknown type"


def _label(value: object) -> str:
    """A name fit for a log and a message, whatever was sent."""
    text = value if isinstance(value, str) else type(value).__name__
    return "".join(character if character.isalnum() or character in "_.-" else "?" for character in text[:64])
