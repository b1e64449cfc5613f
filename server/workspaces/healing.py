"""Looking at a workspace before anyone works with it: it is what it was, and no rewind in it is half done."""

from __future__ import annotations

from typing import Final

import structlog

from server.checkpoints import Seal
from server.errors import ErrorCode, RookeryError
from server.files import WorkspaceFiles
from server.models import CheckpointKind, CheckpointRecord, EventKind, SessionRecord
from server.services import Services
from server.workspaces.snapshots import REWOUND, Snapshots, joined

log = structlog.get_logger(__name__)

DOUBTFUL_FILES: Final = (
    "The workspace may lack files or changes that were made at the end of the turn before, which was cut off. Look at "
    "files again before you rely on what you remember of them."
)
"""What the agent is told before its next prompt."""


async def heal_workspace(services: Services, session: SessionRecord, files: WorkspaceFiles) -> None:
    """See that the files are what they were, and finish a rewind that a crash interrupted: before any work with them.

    Raises:
        RookeryError: ``storage_unavailable``, ``sandbox_lost``.
    """
    seal = await services.checkpoints.mirror.sealed(session.id)
    if not await files.intact() and seal is not None:
        if not await may_differ(services, session, seal):
            raise await _lost(services, session, seal)
        await _tell_of_doubt(services, session, files, seal)
    pending = await files.pending()
    if pending is None:
        return
    await _add_notice(services, session, REWOUND)
    await files.restore(pending.tree_hash)
    data = {"text": "A rewind that a crash had interrupted was finished."}
    await services.store.append_events(session.id, session.turn, [(EventKind.REWIND, data)])


async def may_differ(services: Services, session: SessionRecord, seal: Seal) -> bool:
    """Whether it is no wonder when files are not what is known of them: a turn was cut off, and nobody saw its end.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    last = await _last_checkpoint(services, session)
    return seal.token is None and last is not None and last.kind is CheckpointKind.TURN_START


async def _last_checkpoint(services: Services, session: SessionRecord) -> CheckpointRecord | None:
    known = await services.store.checkpoints(session.id)
    return known[-1] if known else None


async def _lost(services: Services, session: SessionRecord, seal: Seal) -> RookeryError:
    """The error that names the checkpoint from which the session can be forked: one of the very files that it had."""
    point = await _last_checkpoint(services, session)
    if point is None or point.tree != seal.tree_hash:
        # After a rewind, or a file that was written from outside, no checkpoint was taken.
        kept = await services.checkpoints.mirror.snapshot(seal.tree_hash)
        label = "the files that the sandbox lost"
        point = await Snapshots(services, session).record(CheckpointKind.MANUAL, session.turn, kept, label)
    return RookeryError(
        ErrorCode.SANDBOX_LOST,
        "The sandbox came back from its pause with other files than it had, so nothing goes on in it. What was "
        f'there is kept here: fork_session(session_id="{session.id}", checkpoint_id="{point.id}") goes on from it.',
    )


async def _tell_of_doubt(services: Services, session: SessionRecord, files: WorkspaceFiles, seal: Seal) -> None:
    """Go on with files that nobody can vouch for, and say so to the user and to the agent."""
    present = await files.take()
    changes = await services.checkpoints.compare(seal.tree_hash, present.tree_hash, limit=1)
    last = await _last_checkpoint(services, session)
    point = "" if last is None else f" ({last.id})"
    text = (
        "The last turn was cut off while the sandbox could not be reached. Whether it brought back all that the turn "
        f"did cannot be known; compared with the turn's start{point}, {changes.added:,} files were added, "
        f"{changes.changed:,} changed and {changes.removed:,} removed. rewind_files takes them back to it."
    )
    log.warning("workspace cannot be vouched for", session_id=session.id)
    await services.store.append_events(session.id, session.turn, [(EventKind.NOTICE, {"text": text})])
    await _add_notice(services, session, DOUBTFUL_FILES)
    await services.checkpoints.mirror.unseal(session.id)


async def _add_notice(services: Services, session: SessionRecord, notice: str) -> None:
    present = await services.store.session_for_server(session.id)
    await services.store.update_session(session.id, pending_notice=joined(present.pending_notice, notice))
