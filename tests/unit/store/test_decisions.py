"""The audit of decisions: added, read by its owner, and never changed."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from server.errors import RookeryError
from server.models import Decider, DecisionRecord, SessionState
from server.store import Store
from tests.unit.store.records import ALICE, BOB, START, started


def a_decision(number: int, **changes: object) -> DecisionRecord:
    given: dict[str, object] = {
        "id": f"d{number}",
        "at": START,
        "principal": ALICE,
        "session_id": "s1",
        "turn": 1,
        "tool_use_id": f"toolu_{number}",
        "tool": "Bash",
        "policy": "workspace",
        "policy_digest": "0" * 64,
        "request_digest": "1" * 64,
        "decision": "deny",
        "rule": None,
        "because": "No rule allows it.",
        "matched": ("profile:no-secrets",),
        "rewritten": False,
        "decider": Decider.RULE,
        "latency_us": 120,
        **changes,
    }
    return DecisionRecord.model_validate(given)


async def test_decisions_are_read_back_as_they_were_added_by_their_owner_only(store: Store) -> None:
    entries = [a_decision(1), a_decision(2, decision="allow", rule="tests"), a_decision(3, session_id="s2")]
    await store.record_decisions(entries)
    assert await store.decisions(ALICE) == entries
    assert await store.decisions(ALICE, session_id="s1", decision="allow") == entries[1:2]
    assert await store.decisions(ALICE, limit=1) == entries[2:]
    assert await store.decisions(BOB) == []


async def test_decisions_outlive_their_session(store: Store) -> None:
    await started(store, "s1")
    await store.record_decisions([a_decision(1)])
    await store.move("s1", SessionState.ENDED)
    await store.delete_session(ALICE, "s1")
    assert len(await store.decisions(ALICE, session_id="s1")) == 1


@pytest.mark.parametrize("statement", ["UPDATE decisions SET decision = 'allow'", "DELETE FROM decisions"])
async def test_the_database_refuses_to_change_or_remove_a_decision(store: Store, statement: str) -> None:
    await store.record_decisions([a_decision(1)])

    def change(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    with pytest.raises(RookeryError):
        await store._database.write(change)
    assert await store.decisions(ALICE) == [a_decision(1)]
