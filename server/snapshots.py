"""Checkpoints of a session: the point before and after each turn, and on demand (DESIGN section 6).

A checkpoint is a row that names a tree of files (content-addressed, shared between forks) and a length of the
transcript. The engine for trees is :mod:`server.checkpoints`; this module knows when, and keeps the rows.
"""

from __future__ import annotations

from typing import Final

from server.models import CheckpointKind, CheckpointRecord, EventKind, SessionRecord, TurnRecord
from server.sandboxes.base import Sandbox
from server.services import Services

MAX_CHANGED_FILES: Final = 200
"""Names of changed files in an outcome; the rest is counted in one last line."""


class Snapshots:
    """Takes the checkpoints of one session."""

    def __init__(self, services: Services, session: SessionRecord) -> None:
        self._services = services
        self._session = session
        self._sandbox: Sandbox | None = None
        self._start: CheckpointRecord | None = None

    def attach(self, sandbox: Sandbox) -> None:
        """Where the files are."""
        self._sandbox = sandbox

    async def start_of(self, turn: TurnRecord) -> TurnRecord:
        """Checkpoint the start of a turn; the turn with its checkpoint."""
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
        if start is not None and start.id == turn.checkpoint_id:
            update["changed_files"] = await self._changed(start.tree, end.tree)
        return turn.model_copy(update=update)

    async def take(self, kind: CheckpointKind, turn: int, label: str = "") -> CheckpointRecord | None:
        """Take a checkpoint now; None where the sandbox keeps no files within reach."""
        services, tree = self._services, self._sandbox.workspace if self._sandbox is not None else None
        if tree is None:
            return None
        snapshot = await services.checkpoints.take(self._session.id, tree)
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
            names = ", ".join(f"{skipped.path} ({skipped.reason})" for skipped in snapshot.skipped[:10])
            text = f"{len(snapshot.skipped)} entries are not in the checkpoint: {names}"
            notice = (EventKind.NOTICE, {"text": text, "checkpoint_id": record.id})
            await services.store.append_events(self._session.id, turn, [notice])
        return record

    async def _changed(self, before: str, after: str) -> tuple[str, ...]:
        changes = await self._services.checkpoints.compare(before, after)
        names = sorted({*changes.added, *changes.removed, *changes.changed})
        if len(names) > MAX_CHANGED_FILES:
            rest = len(names) - MAX_CHANGED_FILES
            return (*names[:MAX_CHANGED_FILES], f"… and {rest:,} more")
        return tuple(names)


def workspace_owner(sandbox: Sandbox) -> int | None:
    """The host uid that the sandbox's files belong to; None when it is the server's own."""
    uid = sandbox.reference.get("uid")
    return uid if isinstance(uid, int) else None
