"""Questions to people, through the whole house: hot, put off, across a restart, expired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode, RookeryError
from server.models import Outcome, PendingApproval, SessionState, StopReason
from tests.house import ME, bash, go_on, open_house, say, settled, spawn, until

pytestmark = pytest.mark.providers

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


BOTH = [bash("touch one"), {**bash("touch two"), "parallel": True}, {"reply_with": "tool_results"}]


async def test_calls_of_one_moment_are_each_asked_about_and_answered_by_themselves(tmp_path: Path) -> None:
    answers = {"Bash: touch one": False, "Bash: touch two": True}
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        session_id = await spawn(registry, BOTH, policy="asking")
        seen: set[str] = set()
        for _ in answers:
            # The CLI asks about one shell command after the other.
            outcome = await until(registry, session_id, lambda now: asked(now) and fresh(now, seen))
            (pending,) = fresh(outcome, seen)
            seen.add(pending.approval_id)
            await registry.answer_approval(ME, pending.approval_id, allow=answers[pending.summary])
        outcome = await settled(registry, session_id)
        assert (outcome.changed_files, outcome.denials) == (("two",), 1)


def fresh(outcome: Outcome, seen: set[str]) -> list[PendingApproval]:
    return [one for one in outcome.pending_approvals if one.approval_id not in seen]


async def test_of_calls_that_nobody_answers_one_waits_over_a_restart_and_the_others_are_to_be_made_again(
    tmp_path: Path,
) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)

    def asleep(outcome: Outcome) -> bool:
        return outcome.stop_reason is StopReason.AWAITING_APPROVAL

    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, BOTH, policy="asking")
        outcome = await until(registry, session_id, asleep)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        (pending,) = (await until(registry, session_id, asked)).pending_approvals
        assert pending.summary == "Bash: touch one"
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn, outcome.denials) == (StopReason.END_TURN, 1, 1)
        assert outcome.changed_files == ("one",)
        assert "make this one again" in outcome.text
        # What is made again by itself is asked about, put off and taken up like the first.
        session_id = outcome.session_id
        await say(registry, session_id, [bash("touch two"), {"reply_with": "tool_results"}])
        (pending,) = (await until(registry, session_id, asleep)).pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        assert (await settled(registry, session_id)).changed_files == ("two",)


async def test_a_question_that_expires_in_a_sleeping_session_ends_the_turn_with_a_typed_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.registry.EXPIRY_S", 0.2)
    options: dict[str, Any] = {"approval_hot_s": 0.2, "approval_ttl_s": 1.5}
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path), **options) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        outcome = await until(registry, session_id, lambda now: now.state is SessionState.IDLE)
        assert outcome.error is not None
        assert (outcome.error.code, outcome.denials) == (ErrorCode.APPROVAL_EXPIRED, 1)
        outcome = await go_on(registry, session_id, [{"text": "fine"}])
        # The call that was put off comes again before the prompt is answered, and is not taken for the answer.
        assert (outcome.text, outcome.turn, outcome.changed_files, outcome.denials) == ("fine", 2, (), 0)


async def test_an_answer_does_not_outlive_a_policy_that_was_tightened_meanwhile(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        (pending,) = (await until(registry, session_id, asked)).pending_approvals
        fresh = policies / "fresh"
        fresh.write_text(ASKING.replace("effect: ask", "effect: deny"))
        fresh.replace(policies / "asking.yaml")
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert (outcome.changed_files, outcome.denials) == ((), 1)
        assert "touching is asked" in outcome.text


async def test_an_interrupt_ends_a_wait_for_a_person(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        await until(registry, session_id, asked)
        await registry.interrupt(ME, session_id)
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.IDLE
        assert outcome.stop_reason is StopReason.INTERRUPTED
        assert outcome.pending_approvals == ()
