"""Seeing what an agent changed, and taking it home: diffs for reading, patches that ``git apply`` takes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, urlencode

from server.checkpoints import Patch, printable
from server.models import SessionRecord
from server.resting import readable_files
from server.services import Services
from server.undo import Undo, file_change, shown_of
from server.views import DiffReport, PatchReport

MAX_SHOWN: Final = 200
"""Files listed one by one; the counts are of all."""

MAX_PATCH_SHOWN: Final = 100_000
"""Bytes of a patch given in the answer itself; a longer one is a resource with a preview."""

PREVIEW: Final = 4_000
"""Characters of a long patch that are shown."""


class TakingHome:
    """Compares states of a session's workspace: any two checkpoints, or one and the present."""

    def __init__(self, services: Services, undo: Undo) -> None:
        self._services = services
        self._undo = undo

    async def diff(
        self,
        session: SessionRecord,
        before_id: str | None,
        after_id: str | None,
        paths: Sequence[str] | None,
        max_bytes: int,
    ) -> DiffReport:
        """What differs, as counts, a list and a unified diff.

        Args:
            before_id: checkpoint to begin from; None: the session's first.
            after_id: checkpoint to compare with; None: the present.
            paths: only these and what is below them.
            max_bytes: where the diff is cut.

        Raises:
            RookeryError: ``checkpoint_not_found``, ``invalid_argument``, ``session_busy`` (the present does not come
                to rest), ``sandbox_lost``.
        """
        before_id, before = await self._before(session, before_id)
        after = await self._after(session, after_id)
        changes = await self._services.checkpoints.compare(before, after, limit=MAX_SHOWN, lines=True)
        text = await self._services.checkpoints.diff(before, after, paths=paths, max_bytes=max_bytes)
        skipped = await self._services.checkpoints.skipped(before, after, paths=paths)
        return DiffReport(
            session_id=session.id,
            from_checkpoint_id=before_id,
            to_checkpoint_id=after_id,
            files_added=changes.added,
            files_changed=changes.changed,
            files_removed=changes.removed,
            files=tuple(file_change(change) for change in changes.entries),
            diff=text.text,
            skipped=shown_of(skipped),
            skipped_count=len(skipped),
            truncated=text.truncated,
            uri=patch_address(session.id, before_id, after_id, paths) if text.truncated else None,
        )

    async def patch(
        self, session: SessionRecord, before_id: str | None, after_id: str | None, paths: Sequence[str] | None
    ) -> tuple[str | None, Patch]:
        """The whole patch, and the checkpoint that it begins from.

        Raises:
            RookeryError: as :meth:`diff`.
        """
        before_id, before = await self._before(session, before_id)
        after = await self._after(session, after_id)
        return before_id, await self._services.checkpoints.export_patch(before, after, paths=paths)

    async def export(
        self, session: SessionRecord, before_id: str | None, after_id: str | None, paths: Sequence[str] | None
    ) -> PatchReport:
        """The patch as a tool answers it: whole when short, else its beginning and where the whole is.

        Raises:
            RookeryError: as :meth:`diff`.
        """
        before_id, patch = await self.patch(session, before_id, after_id, paths)
        text: str | None
        try:
            text = patch.data.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        short = len(patch.data) <= MAX_PATCH_SHOWN
        return PatchReport(
            session_id=session.id,
            from_checkpoint_id=before_id,
            to_checkpoint_id=after_id,
            files=patch.files,
            size=len(patch.data),
            patch=text if short else None,
            base64=base64.b64encode(patch.data).decode() if short and text is None else None,
            preview=None if short else patch.data[:PREVIEW].decode("utf-8", "replace"),
            uri=patch_address(session.id, before_id, after_id, paths),
            omitted=tuple(f"{printable(one.path)}: {one.reason}" for one in patch.omitted),
        )

    async def _before(self, session: SessionRecord, checkpoint_id: str | None) -> tuple[str | None, str | None]:
        if checkpoint_id is not None:
            return checkpoint_id, (await self._undo.find(session, checkpoint_id)).tree
        known = await self._services.store.checkpoints(session.id)
        return (known[0].id, known[0].tree) if known else (None, None)

    async def _after(self, session: SessionRecord, checkpoint_id: str | None) -> str:
        if checkpoint_id is not None:
            return (await self._undo.find(session, checkpoint_id)).tree
        return (await (await readable_files(self._services, session)).take()).tree_hash


def patch_address(session_id: str, before_id: str | None, after_id: str | None, paths: Sequence[str] | None) -> str:
    """The resource that holds just these changes, whole."""
    asked = {"since": before_id, "until": after_id, "paths": None if paths is None else "\n".join(paths)}
    query = urlencode({name: value for name, value in asked.items() if value}, quote_via=quote)
    return f"rookery://sessions/{session_id}/changes.patch" + (f"?{query}" if query else "")
