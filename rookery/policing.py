"""What the commands on approvals, the audit and policies do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from policies import Effect, Facts, Policy, PolicyError, ToolRequest, ToolUse, decide
from policies.calls import parse_call
from policies.compare import diff, read_table, run_cases
from policies.explain import explain
from policies.lint import lint
from server.callers import LOCAL_PRINCIPAL
from server.models import EventKind
from server.policy_book import PolicyBook

if TYPE_CHECKING:
    from rookery.administration import Command
    from server.registry import Registry
    from server.settings import Settings

STYLES = {"allow": "green", "ask": "yellow", "deny": "red"}
PAGE = 500


def list_approvals(session_id: str | None) -> Command:
    """The open questions as a table."""

    async def command(registry: Any, console: Console) -> None:
        records = await registry.list_approvals(LOCAL_PRINCIPAL, session_id)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1))
        table.add_column("Approval", no_wrap=True, min_width=35)
        table.add_column("Expires", no_wrap=True)
        table.add_column("Call", overflow="fold")
        for one in records:
            table.add_row(one.id, f"{one.expires_at:%m-%d %H:%M}", escape(one.summary))
        console.print(table if records else "Nothing waits for a decision.")

    return command


def answer_approval(approval_id: str, allow: bool, note: str) -> Command:
    """Answer a question; a server of this home takes the session up."""

    async def command(registry: Any, console: Console) -> None:
        # This process is over in a moment: the agent is woken by a server, not by it.
        record = await registry.answer_approval(
            LOCAL_PRINCIPAL, approval_id, allow=allow, note=note, by="command line", wake=False
        )
        console.print(f"{record.status.value}: {escape(record.summary)}", highlight=False)
        console.print("The agent goes on within seconds where a server of this home runs, or when the next starts.")

    return command


def show_audit(session_id: str | None, decision: str | None, limit: int, as_json: bool) -> Command:
    """The latest decisions, oldest first."""

    async def command(registry: Any, console: Console) -> None:
        rows = await registry.decisions(LOCAL_PRINCIPAL, session_id=session_id, decision=decision, limit=limit)
        if as_json:
            for row in rows:
                console.out(row.model_dump_json(), highlight=False)
            return
        table = Table(box=SIMPLE_HEAD, padding=(0, 1))
        for name in ("Time", "Session", "Turn", "Tool", "Decision", "Rule", "By", "µs"):
            table.add_column(name, no_wrap=name != "Rule", overflow="fold" if name == "Rule" else "ellipsis")
        for row in rows:
            style = STYLES.get(row.decision, "")
            table.add_row(
                f"{row.at:%m-%d %H:%M:%S}",
                row.session_id[:8],
                str(row.turn),
                escape(row.tool),
                f"[{style}]{row.decision}[/]",
                escape(row.rule or "default"),
                row.decider.value,
                str(row.latency_us),
            )
        console.print(table if rows else "No decisions.")

    return command


def simulate(session_id: str, policy: Policy) -> Command:
    """Replay a session's calls under another policy: what would be decided otherwise."""

    async def command(registry: Any, console: Console) -> None:
        changes, replayed = await _replayed(registry, session_id, policy)
        console.print(f"{replayed} call(s) replayed under {policy.name}, {len(changes)} decided otherwise.")
        for call, before, after, because in changes:
            word = "newly denied" if after is Effect.DENY else "newly asked" if after is Effect.ASK else "newly allowed"
            console.print(
                f"[{STYLES[after.value]}]{word}[/] (was {before}): {escape(call)}\n  {escape(because)}", highlight=False
            )

    return command


async def _replayed(
    registry: Registry, session_id: str, policy: Policy
) -> tuple[list[tuple[str, str, Effect, str]], int]:
    """The recorded calls, each with the decision that the audit has of it, held against a policy."""
    recorded: dict[str, str] = {}
    for row in await registry.decisions(LOCAL_PRINCIPAL, session_id=session_id, limit=100_000):
        recorded.setdefault(row.tool_use_id, row.decision)
    history: list[ToolUse] = []
    changes: list[tuple[str, str, Effect, str]] = []
    after, replayed, more = 0, 0, True
    while more:
        page = await registry.transcript(LOCAL_PRINCIPAL, session_id, after=after, limit=PAGE)
        after, more = page.cursor, page.more
        for event in page.events:
            before = recorded.get(str(event.data.get("id")))
            given = event.data.get("input")
            if event.kind is not EventKind.TOOL_CALL or before is None or not isinstance(given, dict):
                continue
            request = ToolRequest(str(event.data.get("tool")), given)
            now = event.at.timestamp()
            decision = decide(request, policy, Facts(history=tuple(history), now=now, turn=event.turn))
            replayed += 1
            if decision.effect.value != before:
                call = f"{request.tool} {json.dumps(given, ensure_ascii=False)}"[:300]
                changes.append((call, before, decision.effect, decision.because))
            if before != "deny":
                history.append(ToolUse(request.tool, now, event.turn))
    return changes, replayed


def lint_policies(settings: Settings, names: Sequence[str]) -> tuple[list[str], bool]:
    """Findings on policies, as lines, and whether one of them is broken.

    Args:
        names: which; empty means every one of ROOKERY_POLICY_DIR.
    """
    from policies import PRESETS, load_policy, policy_names

    lines: list[str] = []
    broken = False
    for name in names or [one for one in policy_names(settings.policy_dir) if one not in PRESETS]:
        try:
            found = lint(load_policy(name, settings.policy_dir))
        except PolicyError as error:
            lines.append(f"{name}: {error}")
            broken = True
            continue
        lines.extend(str(finding) for finding in found)
        lines.append(f"{name}: loads, {len(found)} warning(s)")
    return lines, broken


def check_table(policy: Policy, table: Path) -> tuple[list[str], bool]:
    """Hold a policy against a table of cases; lines on those that fail, and whether any does.

    Raises:
        PolicyError: the table is faulty.
    """
    results = run_cases(read_table(table.read_text(encoding="utf-8"), table.name), policy)
    failed = [result for result in results if not result.passed]
    lines = [
        f"{table.name}:{result.case.line}: {result.case.text}: expected {result.case.expect.value}, "
        f"got {result.effect.value} by {result.rule or 'default'}: {result.because}"
        for result in failed
    ]
    return [*lines, f"{len(results) - len(failed)} of {len(results)} case(s) hold"], bool(failed)


def explain_call(policy: Policy, call: str, role: str | None, as_json: bool, every_rule: bool) -> str:
    """Why a policy decides so about a written call.

    Raises:
        ValueError: it is no call.
    """
    explanation = explain(parse_call(call, role), policy, Facts())
    return json.dumps(explanation.as_dict(), indent=2) if as_json else explanation.as_text(every_rule=every_rule)


def diff_policies(before: Policy, after: Policy) -> list[str]:
    """How two policies differ, as lines; empty when they mean the same."""
    found = diff(before, after)
    lines = [f"rule {line}" for line in found.rules]
    lines += [f"tool {line}" for line in found.tools]
    lines += [f"network {line}" for line in found.network]
    lines += [f"limit {line}" for line in found.limits]
    for change in found.changes:
        given = json.dumps(dict(change.request.input), ensure_ascii=False)[:200]
        lines.append(f"{change.before.value} -> {change.after.value}: {change.request.tool} {given}")
    return lines


def named(settings: Settings, name: str) -> Policy:
    """A policy as sessions get it: with the organisation's layer.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    return PolicyBook(settings.policy_dir, settings.policy).named(name)
