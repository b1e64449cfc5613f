"""What a client's model is told about Rookery: only of tools that are offered."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

_HEAD: Final = (
    "Rookery runs Claude agents for you, each in a sandbox of its own with a file system, a shell and no network."
)

_LOOP: Final = """\
The loop: spawn → wait → continue.
1. spawn_agent(prompt=…) starts an agent on a task and answers with an outcome. The agent knows only its prompt and
   its workspace, so say all that it needs.
2. While the outcome's state is "starting" or "running", the agent works on: call wait_for_sessions with its
   session_id, again and again. No call takes longer than about a minute; long work is many waits, never a new spawn.
3. When the state is "idle", the turn has ended: read `text`, and look at the work.
   continue_session(session_id, prompt) goes on with the same conversation and files; end_session frees the sandbox.
Each outcome's `next` says what to call. A turn that failed is an outcome with `error`; a call that failed begins with
an error code, and `retryable` says whether the same call may succeed later."""

_SIMPLE: Final = """\
run_agent(prompt=…) gives an agent a task and answers with an outcome. The agent knows only its prompt and its
workspace, so say all that it needs. While the outcome's state is "starting" or "running", it works on: call
reply(session_id=…) again and again to wait. When the state is "idle", read `text`; reply(session_id=…, prompt=…) goes
on with the same conversation and files. Each outcome's `next` says what to call."""

_PARTS: Final[tuple[tuple[frozenset[str], str], ...]] = (
    (frozenset({"spawn_agent", "wait_for_sessions", "continue_session", "end_session"}), _LOOP),
    (frozenset({"run_agent", "reply"}), _SIMPLE),
    (
        frozenset({"list_files", "read_file", "export_changes"}),
        "Files: list_files and read_file show the work, export_changes gives it as a patch.",
    ),
    (
        frozenset({"rewind_files", "fork_session"}),
        "Undo: every turn starts with a checkpoint (`checkpoint_id`). rewind_files takes all files back to one "
        "(dry_run=true\nshows what would change), fork_session tries several ways from one.",
    ),
    (
        frozenset({"list_approvals", "answer_approval"}),
        'Approvals: when the state is "awaiting_approval", look with list_approvals and decide with answer_approval.',
    ),
    (
        frozenset({"spawn_agent", "wait_for_sessions"}),
        "Side by side: spawn several agents with wait_s=0, then wait for all of them in one wait_for_sessions.\n"
        "Repeat a spawn safely by giving it a request_id.",
    ),
    (frozenset({"list_sessions"}), "Sessions outlive this connection: list_sessions finds them again."),
    (frozenset({"read_transcript"}), "read_transcript shows what an agent did step by step."),
    (frozenset({"get_costs"}), "get_costs shows what agents cost."),
)
"""Paragraphs, each with the tools that must all be offered for it."""


def instructions_for(tools: Set[str]) -> str:
    """The instructions for a server that offers these tools."""
    return "\n\n".join([_HEAD, *(text for needed, text in _PARTS if needed <= tools)]) + "\n"
