"""Questions to people through the client that waits, in both eras; with one that cannot, and across a restart."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import ElicitRequestParams, ElicitResult, InputRequiredResult

from rookery.state_key import state_key
from server.gateway.scripted import prompt_with
from server.models import SessionState, StopReason
from server.registry import Registry
from server.requests import ListRequest
from tests.house import ME, bash, open_house, settled
from tests.integration.test_approvals import STEPS, policy_dir
from tests.surface import ERAS, Era, ProgressLog, ReadyBackend, answer_of
from tools.elicitation import MAX_ROUNDS
from tools.server import build_server


class Person:
    """Answers questions as told, and remembers them."""

    def __init__(self, *decisions: str) -> None:
        self.decisions = list(decisions)
        self.asked: list[str] = []

    async def __call__(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
        self.asked.append(params.message)
        match self.decisions.pop(0) if len(self.decisions) > 1 else self.decisions[0]:
            case "decline" | "cancel" as action:
                return ElicitResult(action=action)
            case "never":
                await anyio.sleep_forever()
            case decision:
                return ElicitResult(action="accept", content={"decision": decision, "note": "as told"})
        raise AssertionError("unreachable")


@asynccontextmanager
async def client_of(
    registry: Registry, era: Era, person: Person | None, key: bytes | None = None
) -> AsyncIterator[Client]:
    server = build_server(ReadyBackend(registry), state_key=key)
    async with Client(server, mode=era, elicitation_callback=person) as client:
        yield client


def asking(steps: list[dict[str, Any]] = STEPS, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt_with(steps), "policy": "asking", **more}


async def sessions(registry: Registry) -> int:
    return len((await registry.list(ME, ListRequest())).sessions)


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_elicits_is_asked_and_the_call_runs(tmp_path: Path, era: Era) -> None:
    person = Person("allow")
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, era, person) as client,
    ):
        answer = answer_of(await client.call_tool("spawn_agent", asking()))
        assert answer["state"] == "idle"
        assert answer["changed_files"] == ["made"]
        assert len(person.asked) == 1
        assert "touch made" in person.asked[0]
        assert await sessions(registry) == 1


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("decision", ["deny", "decline"])
async def test_a_refusal_denies_the_call_and_is_counted(tmp_path: Path, era: Era, decision: str) -> None:
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, era, Person(decision)) as client,
    ):
        answer = answer_of(await client.call_tool("spawn_agent", asking()))
        assert (answer["state"], answer["denials"], answer["changed_files"]) == ("idle", 1, [])


@pytest.mark.parametrize("era", ERAS)
async def test_a_question_put_aside_comes_back_as_the_structured_outcome(tmp_path: Path, era: Era) -> None:
    person = Person("cancel")
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, era, person) as client,
    ):
        answer = answer_of(await client.call_tool("spawn_agent", asking()))
        assert answer["state"] == "awaiting_approval"
        assert len(person.asked) == 1
        (pending,) = answer["pending_approvals"]
        await client.call_tool("answer_approval", {"approval_id": pending["approval_id"], "decision": "allow"})
        assert (await settled(registry, answer["session_id"])).changed_files == ("made",)


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_cannot_ask_gets_the_structured_outcome(tmp_path: Path, era: Era) -> None:
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, era, None) as client,
    ):
        answer = answer_of(await client.call_tool("spawn_agent", asking()))
        assert answer["state"] == "awaiting_approval"
        assert len(answer["pending_approvals"]) == 1


async def test_a_person_who_never_answers_holds_nobody_past_the_wait_and_progress_goes_on(tmp_path: Path) -> None:
    progress = ProgressLog()
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, "legacy", Person("never")) as client,
    ):
        with anyio.fail_after(45):
            answer = answer_of(await client.call_tool("spawn_agent", asking(wait_s=8.0), progress_callback=progress))
        assert answer["state"] == "awaiting_approval"
        assert len(answer["pending_approvals"]) == 1
        assert len(progress.numbers) >= 2
        assert progress.numbers == sorted(set(progress.numbers))


async def test_after_eight_rounds_the_structured_outcome_answers(tmp_path: Path) -> None:
    person = Person("allow")
    steps = [bash(f"touch file{number}") for number in range(MAX_ROUNDS + 1)]
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, "auto", person) as client,
    ):
        answer = answer_of(await client.call_tool("spawn_agent", asking([*steps, {"text": "done"}])))
        assert answer["state"] == "awaiting_approval"
        assert len(person.asked) == MAX_ROUNDS
        assert await sessions(registry) == 1


async def test_an_answer_after_a_restart_reaches_the_same_session_and_the_very_call_runs(tmp_path: Path) -> None:
    """Hot time over, deferred, the server gone: the client of 2026-07-28 repeats its call with the answer."""
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        async with client_of(registry, "auto", Person("allow"), state_key(home)) as client:
            asked = await client.session.call_tool("spawn_agent", asking(), allow_input_required=True)
            assert isinstance(asked, InputRequiredResult)
            (approval_id,) = asked.input_requests or {}
        (session_id,) = [one.session_id for one in (await registry.list(ME, ListRequest())).sessions]
        with anyio.fail_after(30):
            while (await registry.outcome(ME, session_id)).stop_reason is not StopReason.AWAITING_APPROVAL:
                await registry.wait_for_change(ME, [session_id], {}, 0.2)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        assert (await registry.outcome(ME, session_id)).state is SessionState.AWAITING_APPROVAL
        async with client_of(registry, "auto", Person("allow"), state_key(home)) as client:
            answer = await client.session.call_tool(
                "spawn_agent",
                asking(),
                input_responses={approval_id: ElicitResult(action="accept", content={"decision": "allow"})},
                request_state=asked.request_state,
                allow_input_required=True,
            )
            assert not isinstance(answer, InputRequiredResult)
            shown = answer_of(answer)
            assert (shown["session_id"], shown["state"], shown["turn"]) == (session_id, "idle", 1)
            assert shown["changed_files"] == ["made"]
        assert await sessions(registry) == 1


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    key = state_key(tmp_path / "home")
    assert key is not None
    assert len(key) == 32
    assert state_key(tmp_path / "home") == key
    assert stat.S_IMODE((tmp_path / "home" / "request-state.key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["request-state.key"]
    assert state_key(Path("/proc/none")) is None
