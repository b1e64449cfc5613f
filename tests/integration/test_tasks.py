"""Long calls as tasks: the same sessions by another door, for clients that declare the extension."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY, ElicitResult

from server.callers import Caller, Scope
from server.gateway.scripted import prompt_with
from server.registry import Registry
from server.requests import ListRequest
from tests.house import ME, bash, open_house
from tests.integration.test_approvals import policy_dir
from tests.surface import ERAS, Era, ReadyBackend, answer_of
from tests.tasking import TasksClient, ask, begin, until
from tools.server import build_server
from tools.toolsets import tools_of

HOLD = bash("until [ -e go ]; do sleep 0.05; done; echo released")


@asynccontextmanager
async def client_of(
    registry: Registry, *, caller: Caller | None = None, tasks: bool = True, answer: Any = None, era: Era = "auto"
) -> AsyncIterator[Client]:
    async def elicit(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="cancel")

    server = build_server(ReadyBackend(registry), caller=caller or Caller(ME), tools=tools_of(["all", "simple"]))
    extensions = [TasksClient(answer)] if tasks else []
    async with Client(
        server, mode=era, extensions=extensions, elicitation_callback=elicit if answer else None
    ) as client:
        yield client


async def refused(client: Client, task_id: str, what: str = "get") -> int:
    with pytest.raises(MCPError) as refusal:
        await ask(client.session, what, task_id)
    return refusal.value.error.code


async def test_a_call_goes_on_as_a_task_with_the_id_of_its_session_and_outlives_client_and_server(
    tmp_path: Path,
) -> None:
    """Row P04: the client leaves in the midst, and another one, on another server process, gets the outcome."""
    async with open_house(tmp_path) as registry:
        async with client_of(registry) as client:
            created = await begin(client, "spawn_agent", {"prompt": prompt_with([HOLD, {"text": "the work is done"}])})
            session_id = created.task_id
            task = await ask(client.session, "get", session_id)
            assert task["status"] == "working"
            assert "$" in task["statusMessage"]
            assert "result" not in task
            assert [one.session_id for one in (await registry.list(ME, ListRequest())).sessions] == [session_id]
        (tmp_path / "sandboxes" / session_id / "workspace" / "go").touch()
        async with client_of(registry) as client:
            task = await until(client, session_id, "completed")
            assert task["result"]["structuredContent"]["text"] == "the work is done"
    async with open_house(tmp_path) as registry, client_of(registry) as client:
        again = await ask(client.session, "get", session_id)
        assert again["result"]["structuredContent"]["text"] == "the work is done"
        assert (again["status"], again["lastUpdatedAt"]) == ("completed", task["lastUpdatedAt"])
        # Either door works, and a later turn is a task of its own that leaves the first as it was.
        said = {"session_id": session_id, "prompt": prompt_with([{"text": "more"}])}
        answer = answer_of(await client.call_tool("continue_session", said))
        assert (answer["turn"], answer["text"]) == (2, "more")
        second = await ask(client.session, "get", f"{session_id}:2")
        assert second["result"]["structuredContent"]["text"] == "more"
        first = await ask(client.session, "get", session_id)
        assert first["result"]["structuredContent"]["text"] == "the work is done"
        # A caller that wants no waiting gets the outcome at once, task or not.
        at_once = await client.call_tool("reply", {**said, "wait_s": 0})
        assert answer_of(at_once)["turn"] == 3


async def test_p03_a_task_is_cancelled_once_and_stays_so(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry, client_of(registry) as client:
        created = await begin(client, "run_agent", {"prompt": prompt_with([HOLD])})
        await until(client, created.task_id, "working")
        for _ in range(2):
            assert (await ask(client.session, "cancel", created.task_id))["resultType"] == "complete"
        task = await until(client, created.task_id, "cancelled")
        assert "result" not in task
        assert (await registry.outcome(ME, created.task_id)).state.value == "idle"


async def test_questions_of_a_task_are_put_to_its_client_and_the_call_runs(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def allow(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        return {"action": "accept", "content": {"decision": "allow"}}

    prompt = prompt_with([bash("touch made"), {"text": "done"}])
    async with (
        open_house(tmp_path / "home", policy_dir=policy_dir(tmp_path)) as registry,
        client_of(registry, answer=allow) as client,
    ):
        answer = answer_of(await client.call_tool("spawn_agent", {"prompt": prompt, "policy": "asking"}))
        assert answer["changed_files"] == ["made"]
        assert len(asked) == 1
        assert "touch made" in asked[0]["params"]["message"]


async def test_t02_a_task_is_its_principals_alone_and_needs_scopes(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        async with client_of(registry) as client:
            task_id = (await begin(client, "spawn_agent", {"prompt": prompt_with([HOLD])})).task_id
            for missing in ("0" * 36, f"{task_id}:2", f"{task_id}:01", f"{task_id}:-1", "../x", ""):
                assert await refused(client, missing) == INVALID_PARAMS
        async with client_of(registry, caller=Caller("somebody else")) as client:
            for what in ("get", "update", "cancel"):
                assert await refused(client, task_id, what) == INVALID_PARAMS
        async with client_of(registry, caller=Caller(ME, frozenset({Scope.READ}))) as client:
            assert (await ask(client.session, "get", task_id))["status"] == "working"
            with pytest.raises(MCPError, match="policy_denied"):
                await ask(client.session, "cancel", task_id)
        async with client_of(registry, tasks=False) as client:
            assert await refused(client, task_id) == MISSING_REQUIRED_CLIENT_CAPABILITY
        async with client_of(registry, era="legacy", tasks=False) as client:
            assert await refused(client, task_id) == METHOD_NOT_FOUND


@pytest.mark.parametrize("era", ERAS)
async def test_who_does_not_declare_tasks_waits_as_everyone(tmp_path: Path, era: Era) -> None:
    async with open_house(tmp_path) as registry, client_of(registry, tasks=False, era=era) as client:
        answer = answer_of(await client.call_tool("run_agent", {"prompt": prompt_with([{"text": "hello"}])}))
        assert (answer["text"], answer["state"]) == ("hello", "idle")
        assert "reply(" in answer["next"]
