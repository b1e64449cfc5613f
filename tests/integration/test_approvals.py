"""Questions to people, through the whole house: hot, put off, across a restart, expired."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode, RookeryError
from server.gateway.scripted import prompt_with
from server.models import EventKind, Outcome, PendingApproval, SessionState, StopReason
from tests.house import ME, bash, events, go_on, open_house, settled, spawn, until

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


def asleep(outcome: Outcome) -> bool:
    return outcome.stop_reason is StopReason.AWAITING_APPROVAL


THREE = [*BOTH[:2], {**bash("touch three"), "parallel": True}, BOTH[2]]


async def test_calls_that_nobody_answers_each_wait_over_a_restart_and_run_once_after_their_answer(
    tmp_path: Path,
) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, THREE, policy="asking")
        requests = (await until(registry, session_id, asleep)).cost.requests
        # One wait for a person, not three: once a call was put off, those behind it sleep with it.
        states = [one.data["to"] for one in await events(registry, session_id) if one.kind is EventKind.STATE]
        assert states == ["starting", "running", "awaiting_approval", "running", "awaiting_approval"]
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        pending = (await until(registry, session_id, asked)).pending_approvals
        assert [one.summary for one in pending] == ["Bash: touch one", "Bash: touch two", "Bash: touch three"]
        one, two, three = pending
        await registry.answer_approval(ME, two.approval_id, allow=True)
        outcome = await until(registry, session_id, lambda now: asleep(now) and now.changed_files == ("two",))
        assert outcome.pending_approvals == (one, three)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        await registry.answer_approval(ME, three.approval_id, allow=False, note="not this one")
        await until(registry, session_id, lambda now: asleep(now) and now.denials == 1)
        # The model is not asked before all calls are done, and hears nothing of that.
        assert (await registry.outcome(ME, session_id)).cost.requests == requests
        await registry.answer_approval(ME, one.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn, outcome.denials) == (StopReason.END_TURN, 1, 1)
        assert outcome.changed_files == ("one", "two")
        assert len(outcome.text.splitlines()) == 3
        assert "not this one" in outcome.text
        assert outcome.cost.requests == requests + 1
        texts = [event.data["text"] for event in await events(registry, session_id) if event.kind is EventKind.TEXT]
        assert texts == [outcome.text]


async def test_a_call_that_ran_after_its_answer_does_not_run_again_when_its_agent_starts_again(tmp_path: Path) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    steps = [bash("touch made; echo once >> log"), {"text": "allowed"}]
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, steps, policy="asking")
        (pending,) = (await until(registry, session_id, asleep)).pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        assert (await settled(registry, session_id)).text == "allowed"
    look = [bash("cat log"), {"reply_with": "last_tool_result"}]
    for turn in (2, 3):
        async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
            outcome = await go_on(registry, session_id, look)
            assert (outcome.turn, outcome.text.split(), outcome.denials) == (turn, ["once"], 0)
            assert [event.kind for event in await events(registry, session_id)].count(EventKind.TOOL_RESULT) == turn
            (fork,) = await registry.fork(ME, session_id, prompt=prompt_with(look), checkpoint_id=None, count=1)
            assert (await settled(registry, fork)).text.split() == ["once"]


async def test_a_fork_or_a_rewind_to_where_a_turn_waited_does_not_take_up_its_call(tmp_path: Path) -> None:
    """It would come, and ask, before the prompt is answered, or be answered in its place."""
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path), approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        (pending,) = (await until(registry, session_id, asleep)).pending_approvals
        (waited,) = [one for one in (await registry.get(ME, session_id)).checkpoints if one.kind == "turn_end"]
        say_it = prompt_with([{"text": "the fork's own"}])
        (fork,) = await registry.fork(ME, session_id, prompt=say_it, checkpoint_id=waited.checkpoint_id, count=1)
        outcome = await until(registry, fork, lambda now: asked(now) or not now.state.is_busy)
        assert (outcome.turn, outcome.text, outcome.pending_approvals) == (1, "the fork's own", ())

        await registry.answer_approval(ME, pending.approval_id, allow=True)
        assert (await settled(registry, session_id)).changed_files == ("made",)
        await registry.rewind(ME, session_id, waited.checkpoint_id, dry_run=False, conversation=True)
        outcome = await go_on(registry, session_id, [{"text": "after the rewind"}])
        assert (outcome.turn, outcome.text, outcome.denials) == (2, "after the rewind", 0)


async def test_an_answer_holds_for_one_run_whatever_the_cli_makes_of_its_transcript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, [bash("touch made; echo once >> log"), {"text": "ran"}], policy="asking")
        (pending,) = (await until(registry, session_id, asleep)).pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        assert (await settled(registry, session_id)).text == "ran"
    monkeypatch.setattr("server.launching.agents.without_done", lambda entries, _: list(entries))
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        await go_on(registry, session_id, [{"text": "went on"}])
        refused = [
            event.data["because"] for event in await events(registry, session_id) if event.kind is EventKind.DENIAL
        ]
        assert refused == ["This call ran already: a person's answer holds for once."]
        assert (await registry.read_file(ME, session_id, "log")).text == "once\n"


async def test_calls_that_are_answered_together_run_one_after_the_other_and_an_expired_one_is_denied(
    tmp_path: Path,
) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, THREE, policy="asking")
        one, two, three = (await until(registry, session_id, asleep)).pending_approvals
    with sqlite3.connect(home / "rookery.db") as database:
        database.execute("UPDATE approvals SET expires_at = created_at WHERE id = ?", [one.approval_id])
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        await registry._services.store.expire_approvals()
        for answered in (three, two):
            await registry.answer_approval(ME, answered.approval_id, allow=True, wake=answered is two)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn, outcome.denials) == (StopReason.END_TURN, 1, 1)
        assert outcome.changed_files == ("three", "two")
        assert len(outcome.text.splitlines()) == 3
        assert "approval_expired" in outcome.text


async def test_a_call_that_cannot_wait_beside_another_keeps_its_question_for_the_same_call_made_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of a tool that asks the model itself."""
    monkeypatch.setattr("server.permissions.put_off.QUIET", frozenset())
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    steps = [BOTH[0], BOTH[1], bash("echo again; touch two"), BOTH[1], bash("rm two"), BOTH[1], BOTH[2]]
    steps = [{**step, "parallel": number == 1} if "tool" in step else step for number, step in enumerate(steps)]
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, steps, policy="asking")
        await until(registry, session_id, asleep)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        first, second = (await until(registry, session_id, asked)).pending_approvals
        assert (first.summary, second.summary) == ("Bash: touch one", "Bash: touch two")
        await registry.answer_approval(ME, second.approval_id, allow=True)
        assert (await registry.outcome(ME, session_id)).state is SessionState.AWAITING_APPROVAL
        await registry.answer_approval(ME, first.approval_id, allow=True)
        # Another call, though it does the same, is another question; and so is the same call a second time.
        for summary in ("Bash: echo again; touch two", "Bash: touch two"):
            (pending,) = (await until(registry, session_id, asked)).pending_approvals
            assert pending.summary == summary
            assert pending.approval_id not in (first.approval_id, second.approval_id)
            await registry.answer_approval(ME, pending.approval_id, allow=False)
            await until(registry, session_id, lambda now, last=pending: last not in now.pending_approvals)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn) == (StopReason.END_TURN, 1)
        assert outcome.changed_files == ("one",)
        assert outcome.denials == 3
        assert await registry.list_approvals(ME) == []
        ran = [row.tool_use_id for row in await registry.decisions(ME, decision="allow")]
        assert len(ran) == len(set(ran))


async def test_a_question_that_was_set_aside_sleeps_again_with_the_call_that_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.permissions.put_off.QUIET", frozenset())
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, [*BOTH[:2], bash("touch two"), BOTH[2]], policy="asking")
        first, second = (await until(registry, session_id, asleep)).pending_approvals
        await registry.answer_approval(ME, first.approval_id, allow=True)
        again = await until(registry, session_id, lambda now: asleep(now) and now.changed_files == ("one",))
        assert again.pending_approvals == (second,)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        await registry.answer_approval(ME, second.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn, outcome.denials) == (StopReason.END_TURN, 1, 1)
        assert outcome.changed_files == ("one", "two")


async def test_the_cli_takes_up_one_deferred_call_alone_and_asks_the_model_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it is started once for each call. When this fails, a newer CLI may take up several calls by itself."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr("server.permissions.authority.next_up", nothing)
    async with open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path), approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, BOTH, policy="asking")
        outcome = await until(registry, session_id, asleep)
        for pending in outcome.pending_approvals:
            await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.changed_files) == (StopReason.END_TURN, ("two",))


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
        assert await registry.list_approvals(ME) == []
