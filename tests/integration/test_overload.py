"""A model API that is overloaded: turns that go on by themselves, other models in its place, and what is seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode
from server.gateway import limiter
from server.models import EventKind, StopReason
from server.requests import CostRequest
from server.turns import retrying
from tests.house import ME, bash, events, open_house, run, seen, settled, spawn
from tests.paid_api import Refused, paid_api, settings_of, times

SONNET, HAIKU = "claude-sonnet-4-5", "claude-haiku-4-5"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(limiter, "FIRST_PAUSE_S", 0.01)


async def test_a_turn_goes_on_by_itself_after_the_model_api_failed_and_does_nothing_twice(tmp_path: Path) -> None:
    failures = iter([None, Refused(529), None])
    async with (
        paid_api(lambda _: next(failures, None)) as api,
        open_house(tmp_path, turn_retries=2, **settings_of(api)) as registry,
    ):
        steps = [bash("echo once >> /workspace/log"), {"reply_with": "tool_results"}]
        outcome = await run(registry, steps, model=SONNET)
        assert (outcome.stop_reason, outcome.error) == (StopReason.END_TURN, None)
        [notice] = [one for one in await events(registry, outcome.session_id) if "attempt" in one.data]
        assert (notice.kind, notice.data["attempt"], notice.data["of"]) == (EventKind.NOTICE, 1, 2)
        assert notice.data["waiting"] == "model_unavailable"
        content = await registry.read_file(ME, outcome.session_id, "log")
        assert content.text == "once\n"
        assert (outcome.cost.requests, outcome.cost.failures) == (3, 1)
        assert outcome.turn == 1


async def test_after_the_last_attempt_the_failure_stands_and_can_be_retried_by_the_caller(tmp_path: Path) -> None:
    async with (
        paid_api(lambda _: Refused(529)) as api,
        open_house(tmp_path, turn_retries=2, **settings_of(api)) as registry,
    ):
        outcome = await run(registry, [{"text": "never said"}], model=SONNET)
        assert outcome.stop_reason is StopReason.ERROR
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.retryable) == (ErrorCode.MODEL_UNAVAILABLE, True)
        assert len(api.requests) == 3


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Refused(401, "authentication_error"), ErrorCode.MODEL_AUTH_FAILED),
        (Refused(403, "permission_error"), ErrorCode.MODEL_AUTH_FAILED),
        (Refused(404, "not_found_error"), ErrorCode.INVALID_ARGUMENT),
    ],
)
async def test_what_no_retry_mends_is_not_tried_again(tmp_path: Path, failure: Refused, code: ErrorCode) -> None:
    async with paid_api(lambda _: failure) as api, open_house(tmp_path, turn_retries=2, **settings_of(api)) as registry:
        outcome = await run(registry, [{"text": "never said"}], model=SONNET)
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.retryable) == (code, False)
        # The CLI asks twice for a model that is not known (DESIGN section 4).
        assert len(api.requests) == (2 if failure.status == 404 else 1)


async def test_an_interrupt_ends_a_turn_that_rests_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 90.0)
    async with (
        paid_api(lambda _: Refused(529)) as api,
        open_house(tmp_path, turn_retries=2, **settings_of(api)) as registry,
    ):
        session_id = await spawn(registry, [{"text": "never said"}], model=SONNET)
        await seen(registry, session_id, EventKind.NOTICE)
        waiting = (await registry.get(ME, session_id)).waiting
        assert waiting is not None and waiting.startswith("model_unavailable until ")
        await registry.interrupt(ME, session_id)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.error) == (StopReason.INTERRUPTED, None)
        assert len(api.requests) == 1


async def test_another_model_answers_while_the_one_asked_for_is_overloaded(tmp_path: Path) -> None:
    def failing(body: Mapping[str, Any]) -> Refused | None:
        return Refused(529, headers={"retry-after": "30"}) if body["model"] == SONNET else None

    async with (
        paid_api(failing) as api,
        open_house(tmp_path, fallback_models=(HAIKU,), turn_retries=2, **settings_of(api)) as registry,
    ):
        steps: list[dict[str, Any]] = [bash("echo hi"), {"reply_with": "model"}]
        outcome = await run(registry, steps, model=SONNET)
        assert (outcome.stop_reason, outcome.text) == (StopReason.END_TURN, HAIKU)
        # Asked once, then left alone until its lane opens again.
        assert [body["model"] for body in api.requests] == [SONNET, HAIKU, HAIKU]
        assert not any("thinking" in body for body in api.requests[1:])
        [notice] = [one for one in await events(registry, outcome.session_id) if "fallback" in one.data]
        assert notice.data["fallback"] == {"from": SONNET, "to": HAIKU}
        report = await registry.costs(ME, CostRequest(session_id=outcome.session_id, group_by="model"))
        by_model = {group.key: group.cost for group in report.groups}
        assert (by_model[SONNET].requests, by_model[SONNET].failures, by_model[SONNET].usd) == (1, 1, 0)
        assert (by_model[HAIKU].requests, by_model[HAIKU].failures) == (2, 0)


async def test_no_model_answers_that_the_policy_does_not_permit(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "sonnet.yaml").write_text(
        "version: 1\nid: house/sonnet\nextends: workspace\nmodels: ['claude-sonnet-*']\n"
    )
    house = {"fallback_models": (HAIKU,), "policy_dir": tmp_path / "policies"}
    async with (
        paid_api(times(1, Refused(529, headers={"retry-after": "30", "x-should-retry": "false"}))) as api,
        open_house(tmp_path / "home", **house, **settings_of(api)) as registry,
    ):
        outcome = await run(registry, [{"text": "never said"}], model=SONNET, policy="sonnet")
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.MODEL_UNAVAILABLE
        assert [body["model"] for body in api.requests] == [SONNET]


async def test_a_wait_for_the_rate_limit_is_shown_and_told(tmp_path: Path) -> None:
    async with (
        paid_api(times(1, Refused(429, "rate_limit_error", {"retry-after": "3"}))) as api,
        open_house(tmp_path, turn_retries=2, **settings_of(api)) as registry,
    ):
        session_id = await spawn(registry, [{"text": "done"}], model=SONNET)
        notice = await seen(registry, session_id, EventKind.NOTICE)
        assert notice.data["waiting"] == "rate_limited"
        waiting = (await registry.get(ME, session_id)).waiting
        assert waiting is not None and waiting.startswith("rate_limited until ")
        assert (await registry.progress(ME, session_id)).text == waiting
        outcome = await settled(registry, session_id)
        assert (outcome.text, outcome.cost.failures) == ("done", 1)
        assert (await registry.get(ME, session_id)).waiting is None
