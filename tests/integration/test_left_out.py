"""What a copy of a directory, or a checkpoint, cannot hold is told where its caller looks, and not in the log alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client

from server.gateway.scripted import prompt_with
from server.workspaces.filling import MAX_NAME, MAX_NOT_COPIED_SHOWN
from tests.house import bash, open_house
from tests.surface import answer_of, connected, text_of


@asynccontextmanager
async def served(home: Path, **settings: Any) -> AsyncIterator[Client]:
    async with open_house(home, **settings) as registry, connected(registry) as client:
        yield client


async def call(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    return answer_of(await client.call_tool(tool, arguments))


async def test_the_answer_to_a_spawn_tells_what_of_a_directory_was_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("copied")
    os.mkfifo(source / "pipe")
    workspace = {"path": str(source)}
    expected = {"count": 1, "entries": ["pipe (fifo)"]}
    async with served(tmp_path / "home", workspace_roots=(source,)) as client:
        # At once, also to a caller that does not wait for the turn.
        given = {"prompt": prompt_with([{"text": "done"}]), "workspace": workspace, "wait_s": 0}
        result = await client.call_tool("spawn_agent", given)
        first = answer_of(result)
        assert first["not_copied"] == expected
        assert "Not copied into the workspace: pipe (fifo)" in text_of(result)
        session = {"session_id": first["session_id"]}
        (waited,) = (await call(client, "wait_for_sessions", session_ids=[first["session_id"]]))["outcomes"]
        assert waited["not_copied"] == expected
        second = await call(client, "continue_session", **session, prompt=prompt_with([{"text": "more"}]))
        assert second["not_copied"] is None
        result = await client.call_tool("get_session", session)
        assert answer_of(result)["not_copied"] == expected
        assert text_of(result).count("pipe (fifo)") == 1
        assert [one["path"] for one in (await call(client, "list_files", **session))["entries"]] == ["file"]

        (source / "pipe").unlink()
        whole = await call(client, "spawn_agent", prompt=prompt_with([{"text": "done"}]), workspace=workspace)
        assert whole["not_copied"] is None
        assert (await call(client, "get_session", session_id=whole["session_id"]))["not_copied"] is None


async def test_what_was_not_copied_is_told_within_bounds(tmp_path: Path) -> None:
    source = tmp_path / "source"
    deep = source / "/".join(["d" * 100] * 9)
    deep.mkdir(parents=True)
    for number in range(MAX_NOT_COPIED_SHOWN + 5):
        os.mkfifo(deep / f"{number:03}")
    async with served(tmp_path / "home", workspace_roots=(source,)) as client:
        given = {"prompt": prompt_with([{"text": "done"}]), "workspace": {"path": str(source)}}
        result = await client.call_tool("spawn_agent", given)
        told = answer_of(result)["not_copied"]
        assert told["count"] == MAX_NOT_COPIED_SHOWN + 5
        assert len(told["entries"]) == MAX_NOT_COPIED_SHOWN
        assert {len(entry) for entry in told["entries"]} == {MAX_NAME}
        assert told["entries"][0].endswith("/000 (fifo)")
        assert ", and 5 more" in text_of(result)


async def test_a_dry_run_tells_what_the_rewind_then_cannot_bring_back_and_a_diff_what_it_does_not_see(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as client:
        steps = [bash("echo one > file; mkfifo pipe"), {"text": "done"}]
        session = {"session_id": (await call(client, "spawn_agent", prompt=prompt_with(steps)))["session_id"]}
        steps = [bash("rm pipe; mkfifo other; echo two > file"), {"text": "done"}]
        second = await call(client, "continue_session", **session, prompt=prompt_with(steps))
        point = {**session, "checkpoint_id": second["checkpoint_id"]}

        result = await client.call_tool("rewind_files", {**point, "dry_run": True})
        ahead = answer_of(result)
        assert (ahead["skipped"], ahead["skipped_count"]) == (["pipe (fifo)"], 1)
        assert "Not held by the checkpoint: pipe (fifo)" in text_of(result)
        diff = await call(client, "diff_files", **session, from_checkpoint_id=second["checkpoint_id"])
        assert (diff["skipped"], diff["skipped_count"]) == (["other (fifo)", "pipe (fifo)"], 2)
        narrow = await call(client, "diff_files", **session, from_checkpoint_id=point["checkpoint_id"], paths=["file"])
        assert (narrow["skipped"], narrow["skipped_count"]) == ([], 0)

        done = await call(client, "rewind_files", **point)
        assert (done["skipped"], done["skipped_count"]) == (ahead["skipped"], ahead["skipped_count"])
        assert [one["path"] for one in (await call(client, "list_files", **session))["entries"]] == ["file"]
