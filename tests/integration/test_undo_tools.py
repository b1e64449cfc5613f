"""The tools for undo, taking work home, approvals and policies, called by a real client in both protocol eras."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client

from server.gateway.scripted import prompt_with
from server.registry import Registry
from tests.house import bash, open_house
from tests.integration.test_approvals import policy_dir
from tools.server import build_server

pytestmark = pytest.mark.providers

ERAS = ("auto", "legacy")


class Ready:
    """A backend whose registry runs already."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def registry(self) -> Registry:
        return self._registry


@asynccontextmanager
async def connected(home: Path, era: str, **settings: Any) -> AsyncIterator[Client]:
    async with open_house(home, **settings) as registry, Client(build_server(Ready(registry)), mode=era) as client:
        yield client


async def call(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    assert isinstance(answer.structured_content, dict)
    return answer.structured_content


async def refused(client: Client, tool: str, /, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    assert answer.structured_content is not None
    return str(answer.structured_content["code"])


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_rewinds_forks_and_takes_work_home(tmp_path: Path, era: str) -> None:
    async with connected(tmp_path / "home", era) as client:
        steps = [bash("printf 'one\\n' > file; printf '\\001\\000' > binary; chmod +x file"), {"text": "done"}]
        first = await call(client, "spawn_agent", prompt=prompt_with(steps))
        session_id = first["session_id"]
        second = await call(
            client,
            "continue_session",
            session_id=session_id,
            prompt=prompt_with([bash("rm binary; echo two >> file"), {"text": "done"}]),
        )
        point = second["checkpoint_id"]
        plan = await call(client, "rewind_files", session_id=session_id, checkpoint_id=point, dry_run=True)
        assert (plan["files_added"], plan["files_changed"], plan["files_removed"]) == (1, 1, 0)
        diff = await call(client, "diff_files", session_id=session_id, from_checkpoint_id=point)
        assert "+two" in diff["diff"]
        report = await call(client, "rewind_files", session_id=session_id, checkpoint_id=point)
        assert report["undo_checkpoint_id"]
        read = await call(client, "read_file", session_id=session_id, path="file")
        assert read["text"] == "one\n"
        patch = await call(client, "export_changes", session_id=session_id)
        target = tmp_path / "target"
        target.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=target, check=True)
        subprocess.run(["git", "apply", "-"], cwd=target, input=patch["patch"].encode(), check=True)
        assert (target / "file").read_text() == "one\n"
        assert (target / "file").stat().st_mode & 0o111
        assert (target / "binary").read_bytes() == b"\x01\x00"
        (content,) = (await client.read_resource(patch["uri"])).contents
        assert base64.b64decode(content.blob).decode() == patch["patch"]  # type: ignore[union-attr]  # bytes are blobs
        forked = await call(
            client,
            "fork_session",
            session_id=session_id,
            count=2,
            prompt=prompt_with([bash("cat file"), {"text": "x"}]),
        )
        assert [fork["state"] for fork in forked["forks"]] == ["idle", "idle"]
        named = await call(client, "create_checkpoint", session_id=session_id, label="named")
        view = await call(client, "get_session", session_id=session_id)
        assert view["checkpoints"][-1] == named


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_writes_a_file_and_the_agent_hears_of_it(tmp_path: Path, era: str) -> None:
    async with connected(tmp_path / "home", era) as client:
        first = await call(client, "spawn_agent", prompt=prompt_with([{"text": "hello"}]))
        session_id = first["session_id"]
        written = await call(client, "write_file", session_id=session_id, path="deep/er/file", text="from outside\n")
        assert written["created"]
        steps = [bash("cat deep/er/file; echo more >> deep/er/file"), {"reply_with": "last_tool_result"}]
        second = await call(client, "continue_session", session_id=session_id, prompt=prompt_with(steps))
        assert "from outside" in second["text"]
        assert second["changed_files"] == ["deep/er/file"]
        third = await call(
            client, "continue_session", session_id=session_id, prompt=prompt_with([{"reply_with": "reminders"}])
        )
        assert "deep/er/file was written from outside" in third["text"]
        for bad in (
            {"path": "../x", "text": ""},
            {"path": "x"},
            {"path": "x", "base64": "!"},
            {"path": ".", "text": ""},
        ):
            assert await refused(client, "write_file", session_id=session_id, **bad) == "invalid_argument"


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_cannot_elicit_answers_by_tool(tmp_path: Path, era: str) -> None:
    async with connected(tmp_path / "home", era, policy_dir=policy_dir(tmp_path)) as client:
        steps = [bash("touch made"), {"text": "done"}]
        asked = await call(client, "spawn_agent", prompt=prompt_with(steps), policy="asking")
        assert asked["state"] == "awaiting_approval"
        (pending,) = (await call(client, "list_approvals"))["approvals"]
        assert pending["approval_id"] == asked["pending_approvals"][0]["approval_id"]
        answered = await call(client, "answer_approval", approval_id=pending["approval_id"], decision="allow")
        assert answered["status"] == "allowed"
        waited = await call(client, "wait_for_sessions", session_ids=[asked["session_id"]])
        assert waited["outcomes"][0]["changed_files"] == ["made"]
        assert (
            await refused(client, "answer_approval", approval_id="ap_missing", decision="allow") == "approval_not_found"
        )


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_asks_what_a_policy_says(tmp_path: Path, era: str) -> None:
    async with connected(tmp_path / "home", era, policy_dir=policy_dir(tmp_path)) as client:
        given = {"tool": "Bash", "input": {"command": "touch x"}}
        explained = await call(client, "explain_policy", policy="asking", **given)
        assert (explained["decision"], explained["rule"]) == ("ask", "ask-for-touch")
        assert any(match["line"] for match in explained["matched"])
        assert (await call(client, "explain_policy", **given))["decision"] == "allow"
        assert await refused(client, "explain_policy", policy="missing", **given) == "invalid_argument"


async def test_what_is_too_long_for_an_answer_is_a_link_to_just_that(tmp_path: Path) -> None:
    async with connected(tmp_path / "home", "auto") as client:
        steps = [bash("seq 40000 > 'a b'; echo x > other"), {"text": "done"}]
        session_id = (await call(client, "spawn_agent", prompt=prompt_with(steps)))["session_id"]
        steps = [bash("seq 40000 80000 > 'a b'; echo y > other"), {"text": "done"}]
        second = await call(client, "continue_session", session_id=session_id, prompt=prompt_with(steps))
        asked = {"session_id": session_id, "from_checkpoint_id": second["checkpoint_id"], "paths": ["a b"]}
        answer = await client.call_tool("export_changes", asked)
        report = answer.structured_content
        assert report is not None
        assert report["patch"] is None
        assert len(report["preview"]) <= 4000
        link = answer.content[-1]
        assert link.type == "resource_link"
        (content,) = (await client.read_resource(link.uri)).contents
        whole = base64.b64decode(content.blob)  # type: ignore[union-attr]  # bytes are blobs
        assert len(whole) == report["size"]
        assert whole.startswith(report["preview"].encode())
        assert b"-40001\n" not in whole
        assert b"other" not in whole
        diff = await client.call_tool("diff_files", {**asked, "max_bytes": 1000})
        assert diff.content[-1].type == "resource_link"
        read = await client.call_tool("read_file", {"session_id": session_id, "path": "a b", "limit": 100})
        link = read.content[-1]
        assert link.type == "resource_link"
        (content,) = (await client.read_resource(link.uri)).contents
        assert base64.b64decode(content.blob).endswith(b"80000\n")  # type: ignore[union-attr]
        read = await client.call_tool("read_file", {"session_id": session_id, "path": "other"})
        assert [one.type for one in read.content] == ["text"], "what is whole needs no link"


async def test_bad_forks_and_checkpoints_are_typed_errors(tmp_path: Path) -> None:
    async with connected(tmp_path / "home", "auto") as client:
        session_id = (await call(client, "spawn_agent", prompt=prompt_with([{"text": "x"}])))["session_id"]
        for bad in ({"count": 17}, {"count": 0}, {"prompt": " "}, {"wait_s": -1}, {"request_id": "a/b"}):
            assert await refused(client, "fork_session", session_id=session_id, **bad) == "invalid_argument"
        code = await refused(client, "fork_session", session_id=session_id, checkpoint_id="cp_missing")
        assert code == "checkpoint_not_found"
        assert await refused(client, "fork_session", session_id="missing") == "session_not_found"
