"""Short texts beside the structured answers: for people, and for clients that show a model nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from server.models import Cost, Event, EventKind, NotCopied, Outcome
from server.views import (
    Approvals,
    ApprovalView,
    CheckpointSummary,
    Deletion,
    DiffReport,
    FileChange,
    FileContent,
    FileListing,
    ForkReport,
    PatchReport,
    PolicyExplanation,
    RewindReport,
    SessionPage,
    SessionView,
    TranscriptPage,
    WrittenFile,
)

_MAX_TEXT: Final = 20_000
"""Longest text of an agent shown in full; the transcript holds all of it."""

_MAX_LINE: Final = 300
"""Longest excerpt of one event."""


def outcome_text(outcome: Outcome) -> str:
    stopped = f" ({outcome.stop_reason.value})" if outcome.stop_reason else ""
    lines = [
        f"Session {outcome.session_id}: {outcome.state.value}, turn {outcome.turn}{stopped}, {money(outcome.cost)}"
    ]
    if outcome.error is not None:
        lines.append(f"Error: {outcome.error.code.value}: {outcome.error.message}")
    if outcome.denials:
        lines.append(f"The policy denied {outcome.denials} tool call(s) in this turn.")
    if outcome.changed_files:
        lines.append("Changed files: " + _shortened(", ".join(outcome.changed_files), 1_000))
    if outcome.not_copied is not None:
        lines.append(_not_copied(outcome.not_copied))
    lines.extend(f"Approval {one.approval_id}: {one.tool}: {one.summary}" for one in outcome.pending_approvals)
    if outcome.structured_output is not None:
        lines.append("Structured output: " + _shortened(json.dumps(outcome.structured_output, ensure_ascii=False)))
    if outcome.text:
        lines += ["", _shortened(outcome.text), ""]
    if outcome.next:
        lines.append("Next: " + outcome.next)
    return "\n".join(lines)


def outcomes_text(outcomes: Iterable[Outcome], following: str) -> str:
    shown = [outcome_text(outcome.model_copy(update={"next": ""})) for outcome in outcomes]
    return "\n\n".join([*shown, "Next: " + following])


def session_text(view: SessionView) -> str:
    lines = [
        f"{view.title or 'Untitled session'} · model {view.model or 'default'} · policy {view.policy}"
        f" · sandbox {view.sandbox}{' · resident' if view.resident else ''}",
        f"Created {view.created_at:%Y-%m-%d %H:%M} UTC, last changed {view.updated_at:%Y-%m-%d %H:%M} UTC",
    ]
    if view.labels:
        lines.append("Labels: " + ", ".join(f"{name}={value}" for name, value in view.labels.items()))
    if view.activity:
        lines.append("Activity: " + view.activity)
    if view.waiting:
        lines.append("Waiting: " + view.waiting)
    lines.extend(
        f"Checkpoint {one.checkpoint_id}: {one.kind}, turn {one.turn}, {one.files} files {one.label}".rstrip()
        for one in view.checkpoints
    )
    if view.not_copied is not None and view.outcome.not_copied is None:
        lines.append(_not_copied(view.not_copied))
    return "\n".join([*lines, outcome_text(view.outcome)])


def page_text(page: SessionPage) -> str:
    if not page.sessions:
        return "No sessions."
    lines = [
        f"{one.session_id}  {one.state.value:<17}  turn {one.turn}  ${one.usd:.4f}  {one.title}".rstrip()
        for one in page.sessions
    ]
    if page.cursor is not None:
        lines.append(f'More: call list_sessions(cursor="{page.cursor}").')
    return "\n".join(lines)


def transcript_text(page: TranscriptPage) -> str:
    lines = [f"#{event.seq} turn {event.turn} {event.kind.value}: {event_text(event)}" for event in page.events]
    if not lines:
        lines.append("No events after this cursor.")
    if page.more:
        lines.append(f"More: call read_transcript(after={page.cursor}).")
    return "\n".join(lines)


def event_text(event: Event) -> str:
    """One event in one line."""
    data = event.data
    match event.kind:
        case EventKind.TEXT | EventKind.THINKING if "text" in data:
            return _line(data["text"])
        case EventKind.TOOL_CALL:
            return _line(f"{data.get('tool', data.get('name', 'tool'))} {_json(data.get('input'))}")
        case _:
            return _line(_json(data))


def deletion_text(deletion: Deletion) -> str:
    what = "was deleted with its files, transcript and checkpoints" if deletion.deleted else "has ended"
    return f"Session {deletion.session_id} {what}."


def listing_text(listing: FileListing) -> str:
    lines = [
        f"{one.mode} {one.size:>10}  {one.path}{'/' if one.kind == 'directory' else ''}"
        + (f" -> {one.target}" if one.target is not None else "")
        for one in listing.entries
    ]
    if not lines:
        lines.append("No files.")
    if listing.truncated:
        lines.append("More entries were left out: list a subdirectory, or raise the limit.")
    return "\n".join(lines)


def content_text(content: FileContent) -> str:
    if content.text is None:
        return f"{content.path}: {content.size} bytes, not UTF-8 text; the structured content holds it in base64."
    if content.next_offset is None:
        return content.text
    return (
        f"{content.text}\n[… call read_file with offset={content.next_offset} to read on; {content.size} bytes in all]"
    )


def money(cost: Cost) -> str:
    """Dollars and requests, saying so when a price is unknown."""
    unpriced = f", {cost.unpriced_requests} of unknown price" if cost.unpriced_requests else ""
    return f"${cost.usd:.4f} in {cost.requests} model request(s){unpriced}"


def _shortened(text: str, limit: int = _MAX_TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def _line(text: Any) -> str:
    flat = " ".join(str(text).split())
    return flat if len(flat) <= _MAX_LINE else flat[:_MAX_LINE] + "…"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def fork_text(report: ForkReport) -> str:
    return outcomes_text(report.forks, report.next)


def rewind_text(report: RewindReport) -> str:
    did = "Would change" if report.dry_run else "Changed"
    lines = [
        f"{did}: {report.files_added} added, {report.files_changed} changed, {report.files_removed} removed"
        + (", and the conversation goes back" if report.conversation else "")
    ]
    lines.extend(_changed(change) for change in report.files)
    lines.extend(_skipped(report.skipped, report.skipped_count))
    return "\n".join([*lines, "Next: " + report.next])


def checkpoint_text(checkpoint: CheckpointSummary) -> str:
    return f"Checkpoint {checkpoint.checkpoint_id}: {checkpoint.files} files {checkpoint.label}".rstrip()


def written_text(written: WrittenFile) -> str:
    return f"{'Created' if written.created else 'Replaced'} {written.path} ({written.size:,} bytes)"


def diff_text(report: DiffReport) -> str:
    head = f"{report.files_added} added, {report.files_changed} changed, {report.files_removed} removed"
    tail = "\n… the diff is cut here" if report.truncated else ""
    skipped = _skipped(report.skipped, report.skipped_count)
    changed = [_changed(change) for change in report.files]
    return "\n".join([head, *changed, *skipped, "", _shortened(report.diff) + tail])


def patch_text(report: PatchReport) -> str:
    head = f"Patch of {report.files} files, {report.size:,} bytes; the whole is at {report.uri}"
    left = [f"Left out: {entry}" for entry in report.omitted]
    return "\n".join([head, *left, "", _shortened(report.patch or report.preview or "")])


def approvals_text(answer: Approvals) -> str:
    return "\n".join([*(approval_text(one) for one in answer.approvals), answer.next])


def approval_text(approval: ApprovalView) -> str:
    return f"Approval {approval.approval_id} ({approval.status}): {approval.summary} (rule {approval.rule})"


def explanation_text(answer: PolicyExplanation) -> str:
    lines = [f"{answer.tool}: {answer.decision} by {answer.rule or 'default'} of {answer.policy}: {answer.because}"]
    for match in answer.matched:
        where = f" ({match.file}:{match.line})" if match.file else ""
        lines.append(f"  {match.effect} {match.rule} in {match.layer}{where}: {match.because}")
    return "\n".join(lines)


def _not_copied(left: NotCopied) -> str:
    more = f", and {left.count - len(left.entries):,} more" if left.count > len(left.entries) else ""
    return f"Not copied into the workspace: {', '.join(left.entries)}{more}"


def _skipped(entries: Sequence[str], count: int) -> list[str]:
    more = [f"Not held by the checkpoint: {count - len(entries):,} more"] if count > len(entries) else []
    return [*(f"Not held by the checkpoint: {entry}" for entry in entries), *more]


def _changed(change: FileChange) -> str:
    lines = "" if change.lines_added is None else f" +{change.lines_added} -{change.lines_removed}"
    return f"  {change.change} {change.path}{lines}"
