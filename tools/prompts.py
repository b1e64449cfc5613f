"""Prompts that help a person delegate: they turn a wish into instructions for the orchestrating model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tools.tool_server import ToolServer

NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "delegate": ("spawn_agent", "wait_for_sessions", "continue_session", "list_files", "read_file", "get_costs"),
    "parallel": (
        "spawn_agent",
        "wait_for_sessions",
        "continue_session",
        "end_session",
        "list_sessions",
        "get_costs",
    ),
    "review": ("get_session", "read_transcript", "diff_files", "export_changes"),
}
"""Of each prompt the tools that it speaks of. It is shown to those who can call them all."""


def add_prompts(server: ToolServer) -> None:
    """Publish the prompts."""
    _add_delegate(server)
    _add_parallel(server)
    _add_review(server)


def _add_delegate(server: ToolServer) -> None:
    @server.prompt(name="delegate", title="Delegate a task", description="Hand one task to a sandboxed agent.")
    def delegate(task: str, workspace: str = "", policy: str = "") -> str:
        rules = f"\nHave it work under this policy: {policy}" if policy else ""
        place = f"\nGive it this material with the `workspace` argument: {workspace}" if workspace else ""
        return (
            "Delegate the following task to an agent with Rookery's tools.\n"
            "Call spawn_agent with a prompt that stands on its own: the goal, what is known, what to deliver, and how "
            "to check it. The agent sees nothing of this conversation and has no network."
            f"{place}{rules}\n"
            "While the outcome says that it works, call wait_for_sessions. Then check the work with list_files and "
            "read_file rather than by its words alone; if something is missing, say so with continue_session. "
            "At the end report what was done, what was checked, and what it cost (get_costs).\n\n"
            f"The task:\n{task}"
        )


def _add_parallel(server: ToolServer) -> None:
    @server.prompt(
        name="parallel",
        title="Work in parallel",
        description="Split a task among several sandboxed agents and bring the results together.",
    )
    def parallel(task: str, agents: str = "3") -> str:
        return (
            f"Split the following task into at most {agents} parts that do not depend on each other, and have them "
            "done side by side with Rookery's tools.\n"
            "Call spawn_agent once for each part with wait_s=0, a title, and the same label, so that list_sessions "
            "finds them together. Each agent has a workspace of its own and sees nothing of the others: put all it "
            "needs into its prompt and its workspace. Then call wait_for_sessions with all session ids, again while "
            "`working` is not empty. Read the results, mend what falls short with continue_session, and combine them. "
            "At the end report the results with their costs (get_costs with group_by=session), and end the sessions "
            "that are done.\n\n"
            f"The task:\n{task}"
        )


def _add_review(server: ToolServer) -> None:
    @server.prompt(
        name="review",
        title="Review a session",
        description="Look at what an agent did, and judge it before its work is taken home.",
    )
    def review(session_id: str) -> str:
        return (
            f"Review the work of Rookery's session {session_id}.\n"
            "Look at its outcome with get_session, at what it did with read_transcript, and at every change with "
            "diff_files. Check what it claims against the files, not against its words. Then say what is right, what "
            "is wrong or risky, what is missing, and whether the work should be taken home with export_changes."
        )
