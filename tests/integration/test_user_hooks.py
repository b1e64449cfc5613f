"""Hooks of the user, through the whole house: they can only tighten, and whatever goes wrong in one denies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode, RookeryError
from server.hooks import load_hooks
from server.models import Decider, StopReason
from tests.house import ME, bash, go_on, open_house, run, spawn, until
from tests.integration.test_approvals import asked

REPLY = {"reply_with": "last_tool_result"}
TOUCH = [bash("touch made"), REPLY]
HERE = "tests.hooks_of_a_user"


def hook(event: str, name: str) -> dict[str, Any]:
    return {"hooks": (f"{event}={HERE}:{name}",), "hook_timeout_s": 1}


async def test_a_hook_denies_what_the_policy_allows_and_the_audit_names_it(tmp_path: Path) -> None:
    async with open_house(tmp_path, **hook("PreToolUse", "no_touch")) as registry:
        outcome = await run(registry, [bash("true"), *TOUCH])
        assert (outcome.denials, outcome.changed_files) == (1, ())
        assert "the hook says no" in outcome.text
        rows = await registry.decisions(ME, session_id=outcome.session_id)
        assert [(row.decision, row.decider) for row in rows] == [("allow", Decider.RULE), ("deny", Decider.HOOK)]
        assert rows[1].decided_by == f"{HERE}:no_touch"


@pytest.mark.parametrize("name", ["raises", "junk", "slow", "slow_async"])
async def test_r23_a_hook_that_raises_answers_junk_or_hangs_denies(tmp_path: Path, name: str) -> None:
    """Row R23: a fault in a user's hook fails closed, with the real CLI."""
    async with open_house(tmp_path, **hook("PreToolUse", name)) as registry:
        outcome = await run(registry, TOUCH)
        assert (outcome.denials, outcome.changed_files) == (1, ())


async def test_a_hook_can_ask_and_cannot_free_what_the_policy_denies(tmp_path: Path) -> None:
    async with open_house(tmp_path, **hook("PreToolUse", "ask_first")) as registry:
        session_id = await spawn(registry, TOUCH)
        (pending,) = (await until(registry, session_id, asked)).pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await until(registry, session_id, lambda now: not now.state.is_busy)
        assert outcome.changed_files == ("made",)
        outcome = await run(registry, TOUCH, policy="locked-down")
        assert outcome.changed_files == ()


async def test_a_hook_cannot_change_the_call(tmp_path: Path) -> None:
    async with open_house(tmp_path, **hook("PreToolUse", "tampers")) as registry:
        assert (await run(registry, TOUCH)).changed_files == ("made",)


async def test_a_hook_on_results_stops_the_turn_before_the_agent_reads_on(tmp_path: Path) -> None:
    async with open_house(tmp_path, **hook("PostToolUse", "no_leak")) as registry:
        outcome = await run(registry, [bash("echo hidden-word"), bash("touch made"), {"text": "end"}])
        assert (outcome.denials, outcome.changed_files) == (1, ())
        assert (await go_on(registry, outcome.session_id, TOUCH)).changed_files == ("made",)


async def test_a_hook_on_prompts_refuses_them(tmp_path: Path) -> None:
    async with open_house(tmp_path, **hook("UserPromptSubmit", "no_secrets")) as registry:
        with pytest.raises(RookeryError) as refused:
            await spawn(registry, "open sesame")
        assert refused.value.code is ErrorCode.POLICY_DENIED
        outcome = await run(registry, [{"text": "hello"}])
        with pytest.raises(RookeryError):
            await go_on(registry, outcome.session_id, "open sesame")
        assert (await go_on(registry, outcome.session_id, [{"text": "again"}])).text == "again"


async def test_a_hook_on_the_end_withholds_an_answer(tmp_path: Path) -> None:
    async with open_house(tmp_path, **hook("Stop", "polite")) as registry:
        outcome = await run(registry, [{"text": "something rude"}])
        assert outcome.stop_reason is StopReason.REFUSED
        assert outcome.error is not None
        assert (outcome.error.code, outcome.text) == (ErrorCode.POLICY_DENIED, "")
        assert (await go_on(registry, outcome.session_id, [{"text": "kind"}])).text == "kind"


@pytest.mark.parametrize(
    "spec", ["PreToolUse", "Nothing=a:b", f"Stop={HERE}:missing", "Stop=no.such.module:f", f"Stop={HERE}:not_callable"]
)
def test_a_hook_that_cannot_be_taken_starts_nothing(spec: str) -> None:
    with pytest.raises(RookeryError) as refused:
        load_hooks([spec], timeout_s=1)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert "ROOKERY_HOOKS" in refused.value.message
