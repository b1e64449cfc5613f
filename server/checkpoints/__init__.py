"""Whole-tree snapshots of workspaces, content-addressed, out of the agent's reach (DESIGN section 6)."""

from server.checkpoints.engine import Checkpoints
from server.checkpoints.objects import ObjectStore
from server.checkpoints.records import (
    Change,
    ChangeKind,
    Changes,
    FileSlice,
    Forecast,
    Item,
    Kind,
    Limits,
    Omitted,
    Patch,
    PendingRestore,
    Restored,
    Seal,
    Skipped,
    SkipReason,
    Snapshot,
    TextDiff,
    printable,
)

__all__ = [
    "Change",
    "ChangeKind",
    "Changes",
    "Checkpoints",
    "FileSlice",
    "Forecast",
    "Item",
    "Kind",
    "Limits",
    "ObjectStore",
    "Omitted",
    "Patch",
    "PendingRestore",
    "Restored",
    "Seal",
    "Skipped",
    "SkipReason",
    "Snapshot",
    "TextDiff",
    "printable",
]
