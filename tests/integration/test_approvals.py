"""Questions to people, through the whole house: hot, put off, across a restart, expired."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ErrorCode, RookeryError
from server.models import Outcome, SessionState, StopReason
from tests.house import ME, bash, go_on, open_house, settled, spawn, until

ASKING = """
version: 1
id: asking
extends: workspace
rules:
  - id: ask-for-touch
    effect: ask
    tools: [Bash]
    when: {argv: [touch]}
    because: "touching is asked"
"""


def policy_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "policies"
    directory.mkdir(exist_ok=True)
    (directory / "asking.yaml").write_text(ASKING)
    return directory


def asked(outcome: Outcome) -> bool:
    return outcome.state is SessionState.AWAITING_APPROVAL and bool(outcome.pending_approvals)


STEPS = [bash("touch made"), {"reply_with": "last_tool_result"}]


async def test_a_hot_question_is_answered_and_the_call_runs(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        outcome = await until(registry, session_id, asked)
        (pending,) = outcome.pending_approvals
        assert pending.summary == "Bash: touch made"
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.END_TURN
        assert outcome.changed_files == ("made",)
        assert outcome.denials == 0


async def test_a_denial_is_told_to_the_agent_and_counted(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        (pending,) = (await until(registry, session_id, asked)).pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=False, note="not today")
        outcome = await settled(registry, session_id)
        assert "not today" in outcome.text
        assert outcome.denials == 1
        assert outcome.changed_files == ()
        with pytest.raises(RookeryError) as again:
            await registry.answer_approval(ME, pending.approval_id, allow=True)
        assert again.value.code is ErrorCode.INVALID_ARGUMENT


async def test_a_question_outlives_its_agent_and_the_server_and_the_very_call_runs(tmp_path: Path) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        outcome = await until(registry, session_id, lambda now: now.stop_reason is StopReason.AWAITING_APPROVAL)
        assert outcome.state is SessionState.AWAITING_APPROVAL
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.AWAITING_APPROVAL
        assert not (await registry.get(ME, session_id)).resident
        (pending,) = outcome.pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert outcome.turn == 1
        assert outcome.stop_reason is StopReason.END_TURN
        assert outcome.changed_files == ("made",)


async def test_an_expired_question_is_a_denial_and_the_session_goes_on(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path), approval_ttl_s=0.5) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        outcome = await settled(registry, session_id)
        assert "approval_expired" in outcome.text
        assert outcome.denials == 1
        assert (await go_on(registry, session_id, [{"text": "fine"}])).text == "fine"


async def test_an_interrupt_ends_a_wait_for_a_person(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        await until(registry, session_id, asked)
        await registry.interrupt(ME, session_id)
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.IDLE
        assert outcome.stop_reason is StopReason.INTERRUPTED
        assert outcome.pending_approvals == ()
