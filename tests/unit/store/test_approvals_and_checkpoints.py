"""Approvals are answered once; checkpoints are kept and found by their principal."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.models import ApprovalStatus, CheckpointKind
from server.store import Store, open_store
from tests.unit.store.records import ALICE, BOB, START, a_checkpoint, an_approval, started


async def test_an_approval_waits_is_listed_and_is_answered(store: Store) -> None:
    await started(store, "s1")
    await started(store, "s2")
    asked = an_approval("a1", "s1")
    await store.add_approval(asked)
    await store.add_approval(an_approval("a2", "s2"))

    assert await store.approval(ALICE, "a1") == asked
    assert [approval.id for approval in await store.approvals(ALICE)] == ["a1", "a2"]
    assert await store.approvals(ALICE, "s1") == [asked]
    assert await store.approvals(BOB) == []

    decided = await store.answer_approval(ALICE, "a1", ApprovalStatus.ALLOWED, note="go on", decided_by="anna")

    assert (decided.status, decided.note, decided.decided_by) == (ApprovalStatus.ALLOWED, "go on", "anna")
    assert decided.decided_at is not None
    assert await store.approvals(ALICE, "s1") == []
    assert await store.approvals(ALICE, "s1", pending=False) == [decided]


async def test_an_approval_is_decided_once(url: str) -> None:
    answers: list[ApprovalStatus | ErrorCode] = []
    async with open_store(url) as one, open_store(url) as two:
        await started(one, "s1")
        await one.add_approval(an_approval("a1", "s1", expires_at=one._now() + timedelta(hours=1)))
        async with anyio.create_task_group() as tasks:

            async def answer(store: Store, status: ApprovalStatus) -> None:
                try:
                    answers.append((await store.answer_approval(ALICE, "a1", status)).status)
                except RookeryError as error:
                    answers.append(error.code)

            for status in (ApprovalStatus.ALLOWED, ApprovalStatus.DENIED) * 3:
                tasks.start_soon(answer, one, status)
                tasks.start_soon(answer, two, status)

        status = (await one.approval(ALICE, "a1")).status
        assert answers.count(status) == answers.count(ErrorCode.INVALID_ARGUMENT) == 6


async def test_an_expired_approval_cannot_be_answered(store: Store) -> None:
    await started(store, "s1")
    await store.add_approval(an_approval("late", "s1", expires_at=START))
    await store.add_approval(an_approval("open", "s1"))

    # Before the sweep as after it.
    for _ in range(2):
        with pytest.raises(RookeryError) as refused:
            await store.answer_approval(ALICE, "late", ApprovalStatus.ALLOWED)
        assert refused.value.code is ErrorCode.APPROVAL_EXPIRED
        assert [approval.id for approval in await store.approvals(ALICE)] == ["open"]
        await store.expire_approvals()

    assert (await store.approval(ALICE, "late")).status is ApprovalStatus.EXPIRED
    assert [approval.id for approval in await store.expire_approvals("s1")] == ["open"]
    assert await store.expire_approvals("s1") == []


async def test_what_was_set_aside_is_for_one_call_of_exactly_that_request_and_session(url: str) -> None:
    async with open_store(url) as one, open_store(url) as two:
        for session in ("s1", "s2"):
            await started(one, session)
        soon = one._now() + timedelta(hours=1)
        await one.add_approval(an_approval("a1", "s1", expires_at=soon))
        digest = (await one.approval(ALICE, "a1")).input_digest
        assert await one.take_up("s1", digest, "toolu_early", 1) is None, "its call waits itself"
        assert (await one.set_aside(ALICE, "a1")).set_aside
        await one.answer_approval(ALICE, "a1", ApprovalStatus.ALLOWED)
        assert await one.take_up("s2", digest, "toolu_other", 1) is None
        assert await one.take_up("s1", "0" * 64, "toolu_other", 1) is None
        taken: list[str] = []

        async def take(store: Store, call: str) -> None:
            found = await store.take_up("s1", digest, call, 2)
            if found is not None:
                assert (found.status, found.tool_use_id, found.turn) == (ApprovalStatus.ALLOWED, call, 2)
                taken.append(call)

        async with anyio.create_task_group() as tasks:
            for number, store in enumerate((one, two, one, two)):
                tasks.start_soon(take, store, f"toolu_{number}")
        assert [(await two.approval(ALICE, "a1")).tool_use_id] == taken


async def test_what_was_set_aside_ends_with_its_time_and_with_an_interrupted_turn(store: Store) -> None:
    await started(store, "s1")
    digest = an_approval("a1", "s1").input_digest
    await store.add_approval(an_approval("late", "s1", expires_at=START + timedelta(seconds=1)))
    await store.add_approval(an_approval("answered", "s1"))
    for name in ("late", "answered"):
        await store.set_aside(ALICE, name)
    await store.answer_approval(ALICE, "answered", ApprovalStatus.ALLOWED)
    await store.expire_approvals("s1")
    assert await store.take_up("s1", digest, "toolu_2", 1) is None
    assert (await store.approval(ALICE, "answered")).status is ApprovalStatus.ALLOWED


async def test_a_question_that_is_answered_is_not_set_aside_any_more(store: Store) -> None:
    await started(store, "s1")
    await store.add_approval(an_approval("a1", "s1"))
    await store.answer_approval(ALICE, "a1", ApprovalStatus.DENIED)
    assert not (await store.set_aside(ALICE, "a1")).set_aside


async def test_a_foreign_approval_reads_as_missing(store: Store) -> None:
    await started(store, "s1")
    await store.add_approval(an_approval("a1", "s1"))

    for principal, approval_id in ((BOB, "a1"), (ALICE, "a2")):
        with pytest.raises(RookeryError, match="approval_not_found"):
            await store.answer_approval(principal, approval_id, ApprovalStatus.ALLOWED)
    with pytest.raises(ValueError, match="allows or denies"):
        await store.answer_approval(ALICE, "a1", ApprovalStatus.EXPIRED)

    assert (await store.approval(ALICE, "a1")).status is ApprovalStatus.PENDING


async def test_checkpoints_are_listed_oldest_first_and_forgotten_on_demand(store: Store) -> None:
    await started(store, "s1")
    first = a_checkpoint("z", "s1", label="before")
    second = a_checkpoint("a", "s1", kind=CheckpointKind.UNDO, tree="u" * 64, created_at=START + timedelta(seconds=1))
    await store.add_checkpoint(second)
    await store.add_checkpoint(first)

    assert await store.checkpoints("s1") == [first, second]
    assert await store.checkpoint(ALICE, "z") == first
    assert await store.trees_in_use() == {first.tree, second.tree}
    with pytest.raises(RookeryError, match="checkpoint_not_found"):
        await store.checkpoint(BOB, "z")

    await store.delete_checkpoints(["z", "never-was"])

    assert await store.checkpoints("s1") == [second]
    assert await store.trees_in_use() == {second.tree}
