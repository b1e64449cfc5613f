"""Records to store, with what a test does not care about filled in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from server.clock import Clock
from server.models import (
    ApprovalRecord,
    CheckpointKind,
    CheckpointRecord,
    EventKind,
    LedgerEntry,
    SessionRecord,
    SessionState,
    StopReason,
    TurnRecord,
    Usage,
)
from server.store import Store

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ALICE = "alice"
BOB = "bob"


@dataclass(frozen=True)
class SteppingClock(Clock):
    """A clock on which every look takes a second, so that no two records have the same time."""

    steps: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def now(self) -> datetime:
        return START + timedelta(seconds=next(self.steps))


def a_session(session_id: str, **fields: Any) -> SessionRecord:
    values: dict[str, Any] = {
        "id": session_id,
        "principal": ALICE,
        "root_id": session_id,
        "state": SessionState.STARTING,
        "sandbox_kind": "bubblewrap",
        "created_at": START,
        "updated_at": START,
    }
    return SessionRecord.model_validate(values | fields)


def a_turn(session_id: str, **fields: Any) -> TurnRecord:
    values: dict[str, Any] = {"session_id": session_id, "number": 1, "prompt": "do it", "started_at": START}
    return TurnRecord.model_validate(values | fields)


def a_request(request_id: str, session_id: str, **fields: Any) -> LedgerEntry:
    values: dict[str, Any] = {
        "id": request_id,
        "principal": ALICE,
        "session_id": session_id,
        "root_id": session_id,
        "turn": 1,
        "model": "claude-sonnet-5",
        "status": 200,
        "complete": True,
        "usage": Usage(input_tokens=100, output_tokens=20, cache_read_tokens=300),
        "nano_usd": 1_500_000,
        "started_at": START,
        "ended_at": START + timedelta(seconds=2),
    }
    return LedgerEntry.model_validate(values | fields)


def an_approval(approval_id: str, session_id: str, **fields: Any) -> ApprovalRecord:
    values: dict[str, Any] = {
        "id": approval_id,
        "session_id": session_id,
        "principal": ALICE,
        "turn": 1,
        "tool_use_id": "toolu_1",
        "tool": "Bash",
        "input_digest": "d" * 64,
        "summary": "rm -r build",
        "input": {"command": "rm -r build"},
        "rule": "ask-before-delete",
        "created_at": START,
        "expires_at": START + timedelta(hours=1),
    }
    return ApprovalRecord.model_validate(values | fields)


def a_checkpoint(checkpoint_id: str, session_id: str, **fields: Any) -> CheckpointRecord:
    values: dict[str, Any] = {
        "id": checkpoint_id,
        "session_id": session_id,
        "principal": ALICE,
        "turn": 1,
        "kind": CheckpointKind.TURN_START,
        "tree": "t" * 64,
        "files": 3,
        "bytes": 4096,
        "transcript_length": 7,
        "created_at": START,
    }
    return CheckpointRecord.model_validate(values | fields)


async def started(store: Store, session_id: str, **fields: Any) -> SessionRecord:
    """A session that was just spawned, in state starting with its first turn."""
    return await store.create_session(a_session(session_id, **fields), a_turn(session_id))


async def idle(store: Store, session_id: str, **fields: Any) -> SessionRecord:
    """A session whose first turn is over."""
    await started(store, session_id, **fields)
    await store.move(session_id, SessionState.RUNNING)
    return await end_turn(store, session_id)


async def ended(store: Store, session_id: str, **fields: Any) -> SessionRecord:
    """A session that has ended after its first turn."""
    await idle(store, session_id, **fields)
    return await store.move(session_id, SessionState.ENDED)


async def end_turn(store: Store, session_id: str, number: int = 1) -> SessionRecord:
    turn = await store.turn(session_id, number)
    return await store.end_turn(turn.model_copy(update={"stop_reason": StopReason.END_TURN}), to=SessionState.IDLE)


def some_text(count: int) -> Sequence[tuple[EventKind, dict[str, Any]]]:
    return [(EventKind.TEXT, {"text": f"word {index}"}) for index in range(count)]
