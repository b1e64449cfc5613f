"""Several calls of one moment that were put off: each waits over the sleep, and runs once after its answer.

A CLI that starts again takes up the last call in its transcript that was put off, forgets the others, and asks the
model at once (tried with 2.1.332). So it is started once for each call: the transcript that it is given names that call
last, and its model requests are refused as long as further calls wait. The branch that the refusal leaves in the
transcript is dead, as the next call's result hangs on the call; after the last call the model sees all results.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.models import ApprovalRecord, ApprovalStatus, EventKind, SessionRecord
from server.store import Store

QUIET: Final = frozenset({"Bash", "Read", "Write", "Edit", "NotebookEdit", "Glob", "Grep"})
"""Tools that never ask the model themselves, so that they run while its requests are refused."""


_POINTERS: Final = ("parentUuid", "leafUuid")
"""Keys by which entries of a transcript name others."""


@dataclass
class PutOff:
    """What an agent that starts again is to do.

    Args:
        turn: the number of its turn.
        call: the call that it takes up.
        others: whether further calls wait, so that the model is not to be asked after this one.
    """

    turn: int
    call: str
    others: bool
    done: bool = False
    """Whether the call has a result."""


def may_wait_together(tools: Sequence[str]) -> bool:
    """Whether calls of these tools can be put off at the same moment."""
    return len(tools) < 2 or QUIET.issuperset(tools)


async def owed(store: Store, session: SessionRecord) -> list[ApprovalRecord]:
    """The questions of a session whose calls have had no result yet, oldest first.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    asked = await store.approvals(session.principal, session.id, pending=False)
    if not asked:
        return []
    done = await finished(store, session.id)
    return [one for one in asked if one.tool_use_id not in done]


async def finished(store: Store, session_id: str) -> set[object]:
    """The session's calls that have a result.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    results = await store.events(session_id, kinds=[EventKind.TOOL_RESULT], limit=1_000_000)
    return {event.data.get("id") for event in results}


async def unfinished(store: Store, session: SessionRecord) -> list[ApprovalRecord]:
    """The questions of a session's latest turn whose calls wait in the agent, oldest first.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    return [one for one in await owed(store, session) if one.turn == session.turn]


async def next_up(store: Store, session: SessionRecord) -> PutOff | None:
    """The call that the agent of a turn that goes on is to take up; None where none was answered.

    One that expired comes before those that a person answered: after these the turn goes on.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    waiting = await unfinished(store, session)
    ready = [one for one in waiting if one.status is not ApprovalStatus.PENDING]
    if not ready:
        return None
    chosen = min(ready, key=lambda one: one.status is not ApprovalStatus.EXPIRED)
    return PutOff(session.turn, chosen.tool_use_id, others=len(waiting) > 1)


def naming_last(entries: Sequence[Mapping[str, Any]], call: str) -> list[Mapping[str, Any]]:
    """A transcript by which the CLI takes up this call, of all that were put off."""
    named = [entry for entry in entries if _put_off_by(entry) == call]
    return [*(entry for entry in entries if _put_off_by(entry) != call), *named]


def without_done(entries: Sequence[Mapping[str, Any]], waiting: Container[str]) -> list[Mapping[str, Any]]:
    """A transcript without the notes that put calls off which have a result by now, or that are not the session's.

    A CLI that starts again runs the last call that its transcript says was put off, also one that ran already (seen
    with 2.1.332): what a person allowed once would run at each start. A conversation that was forked, or taken back,
    in the midst of a turn that waited has such a note too, and the call would come before the prompt is answered, or
    in its place. What hung on a note hangs on what is before.

    Args:
        waiting: the calls of the session that may yet be taken up.
    """
    done = {block.get("tool_use_id") for entry in entries for block in _results(entry)}
    before: dict[object, object] = {}
    kept: list[Mapping[str, Any]] = []
    for entry in entries:
        call = _put_off_by(entry)
        if call is not None and (call in done or call not in waiting):
            parent = entry.get("parentUuid")
            before[entry.get("uuid")] = before.get(parent, parent)
            continue
        moved = {key: before[entry[key]] for key in _POINTERS if entry.get(key) in before}
        kept.append({**entry, **moved} if moved else entry)
    return kept


def _put_off_by(entry: Mapping[str, Any]) -> str | None:
    """The call that an entry puts off."""
    attachment = entry.get("attachment")
    if not isinstance(attachment, Mapping) or attachment.get("type") != "hook_deferred_tool":
        return None
    call = attachment.get("toolUseID")
    return call if isinstance(call, str) else None


def _results(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    message = entry.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    for block in content if isinstance(content, list) else ():
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            yield block
