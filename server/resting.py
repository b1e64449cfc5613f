"""Workspaces in sandboxes elsewhere while nobody works with them: sealed, read from this server's copy, given back.

A sandbox of a cloud costs while it runs, and may come back from a pause with less than it had. So when a session goes
to sleep, what its files are is written down here and inside; as long as it sleeps, whoever looks at them looks at this
server's copy; and before anyone works with them again, they are read anew and must be the same to the last byte.
"""

from __future__ import annotations

from typing import Final

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.files import ReadableFiles, StoredFiles, WorkspaceFiles
from server.launching.agents import open_sandbox
from server.models import SessionRecord
from server.services import Services
from server.workspaces.healing import heal_workspace, may_differ

log = structlog.get_logger(__name__)

SEAL_S: Final = 10.0
"""Longest sealing."""

RELEASE_S: Final = 60.0


def lies_elsewhere(services: Services, session: SessionRecord) -> bool:
    """Whether a session has a workspace, and it is no directory of this host.

    Raises:
        RookeryError: ``sandbox_unavailable``: this server has no such provider.
    """
    return session.sandbox is not None and not services.provider_of(session).capabilities.host_workspace


async def readable_files(services: Services, session: SessionRecord) -> ReadableFiles:
    """A session's files for looking at them, without waking a sandbox for it.

    Raises:
        RookeryError: ``session_busy``: there are none yet; ``sandbox_lost``, ``sandbox_unavailable``.
    """
    if session.sandbox is None:
        raise RookeryError(
            ErrorCode.SESSION_BUSY, "The session has no files yet: its sandbox is being made. Try again shortly."
        )
    if lies_elsewhere(services, session):
        seal = await services.checkpoints.mirror.sealed(session.id)
        if seal is not None:
            return StoredFiles(services.checkpoints, seal.tree_hash)
        if session.state.is_terminal and (known := await services.store.checkpoints(session.id)):
            return StoredFiles(services.checkpoints, known[-1].tree)
    return services.files(session.id, await services.attach(session))


async def working_files(services: Services, session: SessionRecord) -> WorkspaceFiles:
    """A session's files for working with them: they are what they were, with no rewind left half done.

    Raises:
        RookeryError: ``sandbox_lost``, ``sandbox_unavailable``, ``storage_unavailable``.
    """
    files = services.files(session.id, await open_sandbox(services, session))
    await heal_workspace(services, session, files)
    return files


async def seal_files(session_id: str, files: WorkspaceFiles, known_as: str | None = None) -> None:
    """Write down what the files are, for they are left alone now. Bounded; failures are logged.

    Of files elsewhere that could not be looked at, it is written down what is known of them last: at the next wake they
    are compared with that.

    Args:
        known_as: the tree that they are, where that is certain.
    """
    try:
        with anyio.fail_after(SEAL_S):
            await files.seal(known_as)
    except (RookeryError, TimeoutError) as error:
        log.warning("workspace could not be sealed", session_id=session_id, error=str(error))


async def seal_workspace(services: Services, session_id: str) -> None:
    """Seal the workspace of a session that nobody works with any more, if it lies elsewhere and is not sealed.

    Bounded; failures are logged, as those of :func:`seal_files`.
    """
    try:
        session = await services.store.session_for_server(session_id)
        if not lies_elsewhere(services, session):
            return
        try:
            files = services.files(session_id, await services.attach(session))
        except RookeryError:
            await services.checkpoints.mirror.mistrust(session_id)
            raise
        await seal_files(session_id, files)
    except RookeryError as error:
        log.warning("workspace could not be sealed", session_id=session_id, error=str(error))


async def _keep(services: Services, session: SessionRecord, files: WorkspaceFiles) -> None:
    """See that it is written down what the files of an ended session are.

    Raises:
        RookeryError: ``sandbox_unavailable``, ``sandbox_lost``, ``storage_unavailable``.
    """
    seal = await services.checkpoints.mirror.sealed(session.id)
    if seal is not None:
        if seal.token is not None:
            return
        if not await files.intact() and not await may_differ(services, session, seal):
            log.warning("files of an ended session are kept as they were known last", session_id=session.id)
            return
    await heal_workspace(services, session, files)
    await files.seal()


async def release(services: Services, session: SessionRecord) -> None:
    """End the sandbox of an ended session, if it lies elsewhere: its files stay readable from here.

    Bounded; failures are logged, and the janitor tries again.
    """
    try:
        if not lies_elsewhere(services, session):
            return
        with anyio.CancelScope(shield=True), anyio.fail_after(RELEASE_S):
            sandbox = await services.attach(session)
            await _keep(services, session, services.files(session.id, sandbox))
            await sandbox.destroy()
    except (RookeryError, TimeoutError) as error:
        if isinstance(error, RookeryError) and error.code is ErrorCode.SANDBOX_LOST:
            log.info("sandbox was gone already", session_id=session.id)
        else:
            log.warning("sandbox of an ended session stays", session_id=session.id, error=str(error))
