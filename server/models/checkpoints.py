"""Points to return to."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from server.models.base import Record


class CheckpointKind(StrEnum):
    """Why a checkpoint was taken."""

    TURN_START = "turn_start"
    TURN_END = "turn_end"
    MANUAL = "manual"
    UNDO = "undo"
    """Taken before a rewind, so that the rewind can be undone."""


class CheckpointRecord(Record):
    """A point to return to: the workspace's whole tree and the length of the transcript (DESIGN section 6)."""

    id: str
    session_id: str
    principal: str
    turn: int
    kind: CheckpointKind
    label: str = ""
    tree: str = Field(description="digest of the manifest of the tree")
    files: int = Field(default=0, ge=0, description="files in the tree")
    bytes: int = Field(default=0, ge=0, description="size of the tree in bytes")
    transcript_length: int = Field(ge=0, description="entries of the mirrored transcript, subagents' included")
    transcript_cuts: tuple[tuple[int, int], ...] = Field(default=(), description="the session's cuts at that moment")
    created_at: datetime
