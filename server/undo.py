"""Going back: checkpoints on demand, rewinding files and conversation, forking from any checkpoint.

Nothing here is final: a rewind first checkpoints the present, and a conversation that is rewound is cut out of view,
not deleted. The caller holds the session's lock and has made sure that no agent runs in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio

from server.checkpoints import Change, Forecast, Restored, Skipped, Snapshot, printable
from server.checkpoints import Changes as TreeChanges
from server.errors import ErrorCode, RookeryError
from server.files import WorkspaceFiles
from server.launching.agents import open_sandbox
from server.models import (
    NANO_USD,
    CheckpointKind,
    CheckpointRecord,
    EventKind,
    SessionRecord,
    SessionState,
)
from server.resting import seal_files, working_files
from server.services import Services
from server.views import FileChange, RewindReport
from server.workspaces.snapshots import REWOUND, Snapshots, joined

MAX_SHOWN: Final = 200
"""Files, and entries left out, that are listed one by one in a report; the counts are of all."""

REWIND_S: Final = 600.0
"""Longest rewind, which nobody can call off."""

Cuts = tuple[tuple[int, int], ...]

FORK_NOTICE: Final = (
    "This conversation was forked: it goes on in a workspace of its own, a copy of the files as they were at this "
    "point. What happened after it in the original conversation did not happen here."
)


class Undo:
    """Undoes the work of sessions that have no agent running."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def checkpoint(self, session: SessionRecord, label: str) -> CheckpointRecord:
        """Take a checkpoint now.

        Raises:
            RookeryError: ``sandbox_lost``, ``storage_unavailable``.
        """
        files = await working_files(self._services, session)
        await self._seal(session, files)
        snapshot = await files.take()
        return await Snapshots(self._services, session).record(CheckpointKind.MANUAL, session.turn, snapshot, label)

    async def find(self, session: SessionRecord, checkpoint_id: str) -> CheckpointRecord:
        """A checkpoint of the session itself, or of an ancestor from before it was forked off.

        Raises:
            RookeryError: ``checkpoint_not_found``.
        """
        store = self._services.store
        checkpoint = await store.checkpoint(session.principal, checkpoint_id)
        kin: SessionRecord | None = session
        until = None
        while kin is not None:
            if checkpoint.session_id == kin.id and (until is None or checkpoint.created_at <= until):
                return checkpoint
            if kin.parent_id is None or kin.forked_from is None:
                break
            try:
                fork_point = await store.checkpoint(session.principal, kin.forked_from)
                until = fork_point.created_at if until is None else min(until, fork_point.created_at)
                kin = await store.session(session.principal, kin.parent_id)
            except RookeryError:
                break
        raise RookeryError(
            ErrorCode.CHECKPOINT_NOT_FOUND,
            "That checkpoint is not one of this session. get_session lists those that it can go back to.",
        )

    async def rewind(
        self, session: SessionRecord, checkpoint: CheckpointRecord, *, dry_run: bool, conversation: bool
    ) -> RewindReport:
        """Take the workspace back to a checkpoint, exactly; with ``conversation`` the conversation too.

        Raises:
            RookeryError: ``checkpoint_not_found`` (conversation of another session), ``sandbox_lost``,
                ``storage_unavailable`` and ``timeout`` (the old state is intact, or a second rewind completes it).
        """
        if conversation and checkpoint.session_id != session.id:
            raise RookeryError(
                ErrorCode.CHECKPOINT_NOT_FOUND,
                "The conversation can go back to this session's own checkpoints only; leave conversation away to "
                "rewind just the files.",
            )
        services = self._services
        files = await working_files(self._services, session)
        if dry_run:
            await self._seal(session, files)
            present = await files.take()
            changes = await self._compare(present.tree_hash, checkpoint.tree)
            left = await services.checkpoints.forecast(present.tree_hash, checkpoint.tree)
            return self._report(session, checkpoint, changes, conversation, left, undo=None)
        # Done whole, though the caller goes away: files that went back without their conversation are neither state.
        try:
            with anyio.fail_after(REWIND_S, shield=True):
                return await self._rewound(session, checkpoint, files, conversation)
        except TimeoutError as error:
            raise RookeryError(
                ErrorCode.TIMEOUT, "The rewind took too long; a second one completes it.", retryable=True
            ) from error

    async def _rewound(
        self, session: SessionRecord, checkpoint: CheckpointRecord, files: WorkspaceFiles, conversation: bool
    ) -> RewindReport:
        """Take the files back, and the conversation with them, and write down that it was done."""
        services = self._services
        snapshots = Snapshots(services, session)
        undo: CheckpointRecord | None = None

        async def keep(present: Snapshot) -> None:
            nonlocal undo
            label = f"before rewinding to {checkpoint.id}"
            undo = await snapshots.record(CheckpointKind.UNDO, session.turn, present, label)
            # Before the first file changes: whatever happens from here on, the agent is told to look again.
            await services.store.update_session(session.id, pending_notice=joined(session.pending_notice, REWOUND))

        restored = await files.restore(checkpoint.tree, on_present=keep)
        await seal_files(session.id, files)
        assert undo is not None
        changes = await self._compare(undo.tree, checkpoint.tree)
        await self._write_down(session, checkpoint, undo, changes, conversation)
        return self._report(session, checkpoint, changes, conversation, restored, undo=undo.id)

    async def _seal(self, session: SessionRecord, files: WorkspaceFiles) -> None:
        """Seal the files of a session that sleeps: what is done with them next need not look at them all again."""
        if not session.resident:
            await seal_files(session.id, files)

    async def _compare(self, before: str, after: str) -> TreeChanges:
        return await self._services.checkpoints.compare(before, after, limit=MAX_SHOWN, lines=True)

    async def _write_down(
        self,
        session: SessionRecord,
        checkpoint: CheckpointRecord,
        undo: CheckpointRecord,
        changes: TreeChanges,
        conversation: bool,
    ) -> None:
        store = self._services.store
        counts = {"added": changes.added, "changed": changes.changed, "removed": changes.removed}
        if conversation:
            cuts = cut_after(checkpoint.transcript_cuts, checkpoint.transcript_length, undo.transcript_length)
            await store.update_session(session.id, transcript_cuts=cuts, pending_notice=None)
        data = {"checkpoint_id": checkpoint.id, "undo_checkpoint_id": undo.id, "conversation": conversation, **counts}
        await store.append_events(session.id, session.turn, [(EventKind.REWIND, data)])

    async def fork(
        self,
        session: SessionRecord,
        checkpoint: CheckpointRecord,
        fork_id: str,
        title: str,
        request_id: str | None = None,
    ) -> SessionRecord:
        """A new idle session with the files and the conversation of a checkpoint; the original is not touched.

        One that this request made before is given instead, as it is: another process may still be filling it.

        If this process dies meanwhile, the janitor of the next removes what there is of it.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``storage_unavailable``; nothing is left behind then.
        """
        services, store = self._services, self._services.store
        now = services.clock.now()
        record = session.model_copy(
            update={
                "id": fork_id,
                "parent_id": session.id,
                "forked_from": checkpoint.id,
                "state": SessionState.STARTING,
                "turn": 0,
                "title": title,
                "workspace": None,
                "sandbox": None,
                "transcript_cuts": (),
                "pending_notice": FORK_NOTICE,
                "owner": services.server_id,
                "resident": False,
                "request_id": request_id,
                "budget_nano_usd": session.budget_nano_usd or round(services.settings.default_budget_usd * NANO_USD),
                "created_at": now,
                "updated_at": now,
                "ended_at": None,
            }
        )
        created = await store.create_session(record, None, most_open=services.settings.principal_sessions)
        if created.id != fork_id:
            return created
        try:
            await store.copy_transcript(
                checkpoint.session_id, created.id, checkpoint.transcript_length, cuts=checkpoint.transcript_cuts
            )
            sandbox = await open_sandbox(services, created)
            files = services.files(created.id, sandbox)
            await files.materialise(checkpoint.tree)
            await seal_files(created.id, files)
        except BaseException:
            await self._discard(created)
            raise
        fork = await store.move(created.id, SessionState.IDLE, owner=None)
        data = {"child_session_id": fork.id, "checkpoint_id": checkpoint.id}
        await store.append_events(session.id, session.turn, [(EventKind.FORK, data)])
        return fork

    async def _discard(self, session: SessionRecord) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(30):
            current = await self._services.store.move(session.id, SessionState.FAILED, owner=None)
            if current.sandbox is not None:
                sandbox = await open_sandbox(self._services, current)
                await sandbox.destroy()
            await self._services.store.delete_session(session.principal, session.id)

    def _report(
        self,
        session: SessionRecord,
        checkpoint: CheckpointRecord,
        changes: TreeChanges,
        conversation: bool,
        left: Forecast | Restored,
        *,
        undo: str | None,
    ) -> RewindReport:
        shown = tuple(file_change(change) for change in changes.entries)
        return RewindReport(
            session_id=session.id,
            checkpoint_id=checkpoint.id,
            dry_run=undo is None,
            conversation=conversation,
            undo_checkpoint_id=undo,
            files_added=changes.added,
            files_changed=changes.changed,
            files_removed=changes.removed,
            files=shown,
            skipped=shown_of((*left.kept, *left.missing)),
            skipped_count=len(left.kept) + len(left.missing),
        )


def cut_after(cuts: Cuts, length: int, present: int) -> Cuts:
    """The cuts of a conversation that goes back to a moment.

    Args:
        cuts: those that there were at that moment.
        length: entries that the transcript had then.
        present: entries that it has now.
    """
    return (*cuts, (length + 1, present)) if present > length else cuts


def shown_of(skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """The first of what checkpoints leave out, as answers show it."""
    return tuple(one.shown for one in skipped[:MAX_SHOWN])


def file_change(change: Change) -> FileChange:
    """A change as answers show it."""
    return FileChange(
        path=printable(change.path),
        change=change.kind.value,
        size=None if change.after is None else change.after.size,
        lines_added=change.lines_added,
        lines_removed=change.lines_removed,
    )
