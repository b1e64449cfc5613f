"""Checkpoints of a session: the point before and after each turn, and on demand (DESIGN section 6).

A checkpoint is a row that names a tree of files (content-addressed, shared between forks) and a length of the
transcript. The engine for trees is :mod:`server.checkpoints`; this module knows when, and keeps the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from server.checkpoints import Skipped, Snapshot, printable
from server.files import WorkspaceFiles
from server.models import CheckpointKind, CheckpointRecord, EventKind, SessionRecord, TurnRecord
from server.services import Services

MAX_CHANGED_FILES: Final = 200
"""Names of changed files in an outcome; the rest is counted in one last line."""

MAX_NAMED: Final = 10
"""Most names of what was left out in one notice."""

MAX_NOTICE: Final = 4_000
"""Longest notice to an agent, in characters; the latest part is kept."""

REWOUND: Final = (
    "The files in the workspace were taken back to how they were at an earlier point of this conversation. Look at "
    "files again before you rely on what you remember of them."
)
"""What the agent is told before its next prompt."""


class Snapshots:
    """Takes the checkpoints of one session."""

    def __init__(self, services: Services, session: SessionRecord) -> None:
        self._services = services
        self._session = session
        self._files: WorkspaceFiles | None = None
        self._start: CheckpointRecord | None = None
        self._last: Snapshot | None = None

    @property
    def latest(self) -> str | None:
        """The tree that was taken last."""
        return None if self._last is None else self._last.tree_hash

    def attach(self, files: WorkspaceFiles) -> None:
        """Whose state they keep."""
        self._files = files

    async def start_of(self, turn: TurnRecord, *, still: bool = False) -> TurnRecord:
        """Checkpoint the start of a turn; the turn with its checkpoint.

        Args:
            still: nothing has run in the sandbox since the last checkpoint, so that this one is of the same files.
        """
        if still and self._last is not None:
            self._start = await self.record(CheckpointKind.TURN_START, turn.number, self._last)
        else:
            self._start = await self.take(CheckpointKind.TURN_START, turn.number)
        if self._start is None:
            return turn
        changed = turn.model_copy(update={"checkpoint_id": self._start.id})
        await self._services.store.update_turn(turn.session_id, turn.number, checkpoint_id=self._start.id)
        return changed

    async def end_of(self, turn: TurnRecord) -> TurnRecord:
        """Checkpoint the end of a turn; the turn with its checkpoint and the files that it changed."""
        end = await self.take(CheckpointKind.TURN_END, turn.number)
        if end is None:
            return turn
        update: dict[str, object] = {"end_checkpoint_id": end.id}
        start = self._start
        if turn.checkpoint_id is not None and (start is None or start.id != turn.checkpoint_id):
            # A turn that was put off for an approval began in another life of the agent.
            start = await self._services.store.checkpoint(self._session.principal, turn.checkpoint_id)
        if start is not None:
            update["changed_files"] = await self._changed(start.tree, end.tree)
        return turn.model_copy(update=update)

    async def take(self, kind: CheckpointKind, turn: int, label: str = "") -> CheckpointRecord | None:
        """Take a checkpoint now; None before there are files."""
        if self._files is None:
            return None
        self._last = await self._files.take()
        return await self.record(kind, turn, self._last, label)

    async def record(self, kind: CheckpointKind, turn: int, snapshot: Snapshot, label: str = "") -> CheckpointRecord:
        """Write down a snapshot that was taken as a checkpoint of this moment."""
        services = self._services
        record = CheckpointRecord(
            id=services.clock.identifier("cp"),
            session_id=self._session.id,
            principal=self._session.principal,
            turn=turn,
            kind=kind,
            label=label,
            tree=snapshot.tree_hash,
            files=snapshot.files,
            bytes=snapshot.bytes,
            transcript_length=await services.store.transcript_length(self._session.id),
            transcript_cuts=self._session.transcript_cuts,
            created_at=services.clock.now(),
        )
        await services.store.add_checkpoint(record)
        if snapshot.skipped:
            text = f"{len(snapshot.skipped)} entries are not in the checkpoint: {named(snapshot.skipped)}"
            notice = (EventKind.NOTICE, {"text": text, "checkpoint_id": record.id})
            await services.store.append_events(self._session.id, turn, [notice])
        return record

    async def _changed(self, before: str, after: str) -> tuple[str, ...]:
        changes = await self._services.checkpoints.compare(before, after, limit=MAX_CHANGED_FILES)
        names = tuple(printable(change.path) for change in changes.entries)
        left = changes.total - len(names)
        return (*names, f"… and {left:,} more") if left else names


def named(skipped: Sequence[Skipped]) -> str:
    """The first of what was left out, and why."""
    names = [entry.shown for entry in skipped[:MAX_NAMED]]
    return ", ".join([*names, "…"] if len(skipped) > MAX_NAMED else names)


def joined(known: str | None, notice: str) -> str:
    """What the agent is to be told already, and one thing more; the latest part where it grows too long."""
    parts = [] if known is None else known.split("\n")
    return "\n".join([*(part for part in parts if part != notice), notice])[-MAX_NOTICE:]
