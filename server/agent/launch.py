"""How the Claude Code CLI is started: its arguments, its environment, and its configuration files.

The SDK applies no command-line option to a custom transport, so the argument list is built here (DESIGN section 4).
Every value that comes from outside is bound to its flag as ``--flag=value``, so that none can become a flag of its
own (row S11 of the security catalogue).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from claude_agent_sdk._cli_version import __cli_version__

from server.egress.trust import TRUST_VARIABLES
from server.sandboxes.base import CLI, CONFIG_DIR, EGRESS_PORT, GATEWAY_SOCKET
from server.telemetry.spans import carrier

PROJECT_KEY: Final = "-workspace"
"""How the CLI names the project whose working directory is ``/workspace``."""

TRANSCRIPTS: Final = f"projects/{PROJECT_KEY}"
"""Where the CLI keeps transcripts, relative to its configuration directory."""

MAX_OUTPUT_TOKENS: Final = 32_000
"""What an answer may be long. The CLI's own 128,000 (measured with 2.1.330) would reserve $2.60 for each request."""


GATEWAY_NAME: Final = "gateway.rookery.internal"
"""Stands for the gateway in URLs; it is never looked up, and never asked for through the egress proxy."""

PROXY: Final = f"http://127.0.0.1:{EGRESS_PORT}"
NO_PROXY: Final = f"localhost,127.0.0.1,::1,{GATEWAY_NAME}"

PROXY_VARIABLES: Final[Mapping[str, str]] = {
    # Programs differ in the letters that they look for: curl takes http_proxy in small ones only.
    **{name: PROXY for word in ("http_proxy", "https_proxy", "all_proxy") for name in (word, word.upper())},
    "no_proxy": NO_PROXY,
    "NO_PROXY": NO_PROXY,
    "NODE_USE_ENV_PROXY": "1",
    # Questions that package managers ask beside their work, to hosts that a policy need not allow.
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "npm_config_update_notifier": "false",
}
"""How programs in a sandbox with an egress proxy find it."""

BUNDLED_CLI_VERSION: Final = __cli_version__


@dataclass(frozen=True)
class LaunchOptions:
    """What is fixed when an agent starts and cannot be changed after: two equal values fit the same warm agent."""

    tools: tuple[str, ...]
    """Built-in tools to offer: always an explicit list, for the CLI's default one starts turns behind our back."""
    model: str | None = None
    system_prompt: str | None = None
    """Replaces the CLI's own system prompt; None keeps it."""
    max_turns: int | None = None
    output_schema: str | None = None
    """JSON text of the schema that the final answer must meet."""
    mcp_servers: tuple[str, ...] = ()
    """Names of in-process MCP servers that the host answers over the control channel."""
    max_output_tokens: int | None = MAX_OUTPUT_TOKENS
    """Bound of one model answer, so that a reservation of the budget stays small; None leaves it to the CLI."""
    network: bool = False
    """Whether programs find an egress proxy; what it lets through is told to it, not to them."""
    intercept: bool = False
    """Whether that proxy opens connections, so that programs must trust the certificates of the sandbox's own."""


def arguments(options: LaunchOptions, session_id: str, *, resume: bool) -> tuple[str, ...]:
    """The command that starts the agent inside its sandbox.

    Args:
        options: the launch options.
        session_id: a UUID: the session's own id.
        resume: continue the conversation found in the configuration directory instead of beginning one.
    """
    command = [
        CLI,
        "--output-format=stream-json",
        "--verbose",
        "--input-format=stream-json",
        "--permission-prompt-tool=stdio",
        "--permission-mode=default",
        "--setting-sources=",
        "--strict-mcp-config",
        "--replay-user-messages",
        "--session-mirror",
        f"--resume={session_id}" if resume else f"--session-id={session_id}",
        f"--tools={','.join(options.tools)}",
    ]
    if options.mcp_servers:
        servers = {name: {"type": "sdk", "name": name} for name in options.mcp_servers}
        command.append(f"--mcp-config={json.dumps({'mcpServers': servers})}")
    if options.model is not None:
        command.append(f"--model={options.model}")
    if options.system_prompt is not None:
        command.append(f"--system-prompt={options.system_prompt}")
    if options.max_turns is not None:
        command.append(f"--max-turns={options.max_turns}")
    if options.output_schema is not None:
        command.append(f"--json-schema={options.output_schema}")
    return tuple(command)


def environment(options: LaunchOptions, token: str) -> dict[str, str]:
    """The agent's whole environment, beside PATH, HOME, USER and LANG, which the provider sets.

    The undocumented ``ANTHROPIC_UNIX_SOCKET`` carries the model traffic (DESIGN section 4); the host name in the base
    URL is never looked up. ``token`` buys metered model calls of this one session and nothing else.
    """
    variables = {
        "ANTHROPIC_UNIX_SOCKET": GATEWAY_SOCKET,
        "ANTHROPIC_BASE_URL": f"http://{GATEWAY_NAME}",
        "ANTHROPIC_API_KEY": token,
        "CLAUDE_CONFIG_DIR": CONFIG_DIR,
        "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
        # The end of a turn is read from these events: "idle" means that no further turn is owed.
        "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_INSTALLATION_CHECKS": "1",
        "IS_SANDBOX": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own, not the host's
    }
    if options.network:
        variables.update(PROXY_VARIABLES)
    if options.intercept:
        variables.update(TRUST_VARIABLES)
    if options.max_output_tokens is not None:
        variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(options.max_output_tokens)
    return variables


def trace_variables() -> dict[str, str]:
    """The trace under way, as the CLI and what it starts take it (``TRACEPARENT``, ``TRACESTATE``); empty without one.

    A warm agent was started before anybody asked for it, so it knows of none; its tools have spans all the same, made
    from what it says.
    """
    return {name.upper(): value for name, value in carrier().items()}


def transcript_files(
    session_id: str, main: Sequence[Mapping[str, Any]], subagents: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, bytes]:
    """The configuration files from which ``--resume`` takes a conversation up again.

    Args:
        session_id: the session's id.
        main: entries of the main transcript, oldest first.
        subagents: sub-path (as the SDK names it, for example ``subagents/agent-1``) → entries.

    Returns:
        path relative to the configuration directory → content.
    """
    files = {f"{TRANSCRIPTS}/{session_id}.jsonl": _lines(main)}
    for subpath, entries in subagents.items():
        files[f"{TRANSCRIPTS}/{session_id}/{subpath}.jsonl"] = _lines(entries)
    return files


def _lines(entries: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode(
        "utf-8", "backslashreplace"
    )
