"""Builds the MCP server: all tools, resources and prompts over one backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final

from mcp.server.caching import CacheHint
from mcp.server.request_state import RequestStateSecurity

from server.callers import LOCAL, Caller
from server.errors import ErrorCode
from tools import approvals, costs, files, sessions, transcripts, undo
from tools.backend import Backend
from tools.definition import ToolDefinition, ToolServer
from tools.prompts import add_prompts
from tools.resources import add_resources

TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    *sessions.TOOLS,
    *transcripts.TOOLS,
    *costs.TOOLS,
    *files.TOOLS,
    *undo.TOOLS,
    *approvals.TOOLS,
)
"""All tools in the order in which they are listed."""

STATE_TTL_S: Final = 3_600.0
"""How long a person may take for one round of questions, before the call must be made afresh."""

INSTRUCTIONS: Final = """\
Rookery runs Claude agents for you, each in a sandbox of its own with a file system, a shell and no network.

The loop: spawn → wait → continue.
1. spawn_agent(prompt=…) starts an agent on a task and answers with an outcome. The agent knows only its prompt and
   its workspace, so say all that it needs.
2. While the outcome's state is "starting" or "running", the agent works on: call wait_for_sessions with its
   session_id, again and again. No call takes longer than about a minute; long work is many waits, never a new spawn.
3. When the state is "idle", the turn has ended: read `text`, and look at the work with list_files and read_file.
   continue_session(session_id, prompt) goes on with the same conversation and files; end_session frees the sandbox.
Each outcome's `next` says what to call. A turn that failed is an outcome with `error`; a call that failed begins with
an error code, and `retryable` says whether the same call may succeed later.

Undo: every turn starts with a checkpoint (`checkpoint_id`). rewind_files takes all files back to one (dry_run=true
shows what would change), fork_session tries several ways from one. export_changes gives the work as a patch.
Approvals: when the state is "awaiting_approval", look with list_approvals and decide with answer_approval.

Side by side: spawn several agents with wait_s=0, then wait for all of them in one wait_for_sessions.
Sessions outlive this connection: list_sessions finds them again. read_transcript shows what an agent did step by step,
get_costs what it cost. Repeat a spawn safely by giving it a request_id.
"""


def build_server(
    backend: Backend,
    *,
    max_wait_s: float = 50.0,
    caller: Caller | None = LOCAL,
    tools: Sequence[ToolDefinition[Any, Any]] = TOOLS,
    state_key: bytes | None = None,
    on_failure: Callable[[ErrorCode], None] | None = None,
) -> ToolServer:
    """The MCP server, for any transport and both protocol eras.

    Args:
        backend: where the registry comes from; asked at the first call that needs it.
        max_wait_s: longest wait inside one tool call, in seconds.
        caller: whose sessions these are when a request carries no identity; None when each must carry one.
        tools: what is offered.
        state_key: at least 32 secret bytes that seal the state of calls which ask the user, the same in every process
            of a home; without it such a call does not outlive this process.
        on_failure: told the code of each call that is answered with an error.
    """
    server = ToolServer(
        tools,
        backend,
        caller=caller,
        max_wait_s=max_wait_s,
        on_failure=on_failure,
        name="rookery",
        title="Rookery",
        description="Sandboxed Claude agents as tools.",
        version=version("rookery"),
        instructions=INSTRUCTIONS,
        request_state_security=(
            RequestStateSecurity.ephemeral(ttl=STATE_TTL_S)
            if state_key is None
            else RequestStateSecurity(keys=[state_key], ttl=STATE_TTL_S)
        ),
        cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="public")},
    )
    add_resources(server)
    add_prompts(server)
    return server
