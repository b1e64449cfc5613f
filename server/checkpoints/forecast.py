"""What a restore will leave in place and what it cannot bring back, told from the trees alone before it is done."""

from __future__ import annotations

from server.checkpoints.manifest import DIRECTORY, SKIPPED, Entry
from server.checkpoints.records import Forecast, Skipped
from server.checkpoints.restore import Action, plan
from server.checkpoints.trees import Trees, skipped_of, text_of
from server.checkpoints.work import Stop


def forecast(trees: Trees, present: bytes, wanted: bytes, stop: Stop) -> Forecast:
    """What :class:`~server.checkpoints.restore.Restore` will tell that it kept and missed.

    Args:
        present: the tree that is there.
        wanted: the tree to restore.
    """
    kept: list[Skipped] = []
    missing: list[Skipped] = []
    for step in plan(trees, present, wanted, stop):
        path = text_of(step.path)
        if step.action in (Action.REMOVE, Action.KEEP) and step.before is not None:
            kept.extend(one for one in _skipped(trees, step.before, path, stop) if one.reason.holds_content)
        elif step.action in (Action.PLACE, Action.MISS) and step.after is not None:
            missing.extend(_skipped(trees, step.after, path, stop))
    return Forecast(_by_path(kept), _by_path(missing))


def _skipped(trees: Trees, entry: Entry, path: str, stop: Stop) -> tuple[Skipped, ...]:
    """What of an entry, and of all below it, no checkpoint holds."""
    if entry.kind == SKIPPED:
        return (skipped_of(entry, path),)
    if entry.kind == DIRECTORY and entry.skipped:
        return trees.skipped(entry.payload, stop, f"{path}/")
    return ()


def _by_path(skipped: list[Skipped]) -> tuple[Skipped, ...]:
    return tuple(sorted(skipped, key=lambda one: one.path))
