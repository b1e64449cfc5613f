"""What the files' engine is made of when it is shipped into a sandbox."""

from __future__ import annotations

from typing import Final

from server.sandboxes.shipping import Program

ENGINE: Final = Program(
    "files",
    (
        "server.errors",
        "server.sandboxes.base",
        "server.checkpoints.compare",
        "server.checkpoints.content",
        "server.checkpoints.crew",
        "server.checkpoints.descent",
        "server.checkpoints.exchange",
        "server.checkpoints.garbage",
        "server.checkpoints.index",
        "server.checkpoints.keyed",
        "server.checkpoints.lines",
        "server.checkpoints.listing",
        "server.checkpoints.manifest",
        "server.checkpoints.objects",
        "server.checkpoints.records",
        "server.checkpoints.removal",
        "server.checkpoints.restore",
        "server.checkpoints.rewind",
        "server.checkpoints.scan",
        "server.checkpoints.trees",
        "server.checkpoints.work",
        "server.checkpoints.writer",
        "server.files.engine",
        "server.files.frames",
        "server.files.looking",
        "server.files.writing",
    ),
    "server.files.engine",
)
"""The engine, with all of ours that it imports; a test starts it and holds the list complete and no longer."""
