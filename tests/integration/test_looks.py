"""When all files of a workspace on this host are looked through, and when that is spared because it cannot matter."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from server.checkpoints.scan import Scan
from server.launching.agents import open_sandbox
from server.registry import Registry
from tests.house import ME, PATIENCE_S, bash, go_on, open_house, run


async def tree(registry: Registry, session_id: str) -> dict[str, str | None]:
    listing = await registry.list_files(ME, session_id, depth=8)
    return {
        entry.path: (await registry.read_file(ME, session_id, entry.path)).text
        for entry in listing.entries
        if entry.kind == "file"
    }


def count_looks(monkeypatch: pytest.MonkeyPatch, looks: list[bool]) -> None:
    """Note each reading of a tree: whether it looked at everything."""
    whole = Scan.__init__

    def counted(self: Scan, *args: object, **options: object) -> None:
        looks.append(options.get("touched") is None)
        whole(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Scan, "__init__", counted)


async def test_the_files_of_a_sleeping_session_are_rewound_without_a_look_at_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never while anybody may have changed them since: its agent lives, or a file was written from outside."""
    looks: list[bool] = []
    async with open_house(tmp_path, idle_s=0.1) as registry:
        first = await run(registry, [bash("mkdir a; echo one > a/file; echo x > other"), {"text": "done"}])
        session_id = first.session_id

        async def asleep() -> None:
            with anyio.fail_after(PATIENCE_S):
                while (await registry.get(ME, session_id)).resident:
                    await anyio.sleep(0.05)

        second = await go_on(registry, session_id, [bash("echo two > a/file"), {"text": "done"}])
        assert second.checkpoint_id is not None
        await asleep()
        count_looks(monkeypatch, looks)
        report = await registry.rewind(ME, session_id, second.checkpoint_id, dry_run=False, conversation=False)
        assert looks == [False], "only what was changed back is read"
        assert await tree(registry, session_id) == {"a/file": "one\n", "other": "x\n"}
        assert report.undo_checkpoint_id is not None
        await registry.rewind(ME, session_id, report.undo_checkpoint_id, dry_run=False, conversation=False)
        assert await tree(registry, session_id) == {"a/file": "two\n", "other": "x\n"}
        await go_on(registry, session_id, [bash("echo three > other"), {"text": "done"}])
        await asleep()
        await registry.write_file(ME, session_id, "a/file", b"written\n")
        looks.clear()
        kept = await registry.rewind(ME, session_id, second.checkpoint_id, dry_run=False, conversation=False)
        assert looks[0], "somebody wrote since it fell asleep"
        assert kept.undo_checkpoint_id is not None
        looks.clear()
        await registry.rewind(ME, session_id, kept.undo_checkpoint_id, dry_run=True, conversation=False)
        assert looks == [], "it was sealed again after the rewind"
        await registry.rewind(ME, session_id, kept.undo_checkpoint_id, dry_run=False, conversation=False)
        assert looks == [False]
        assert await tree(registry, session_id) == {"a/file": "written\n", "other": "three\n"}
    async with open_house(tmp_path) as registry:
        await go_on(registry, session_id, [bash("echo live > other"), {"text": "done"}])
        files = registry._services.files(
            session_id, await open_sandbox(registry._services, await registry._services.store.session(ME, session_id))
        )
        await files.seal()
        assert await registry._services.checkpoints.mirror.sealed(session_id) is None, "its agent lives"


async def test_between_two_turns_of_an_agent_that_is_alone_nothing_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo one > file"), {"text": "done"}])
        session_id = first.session_id
        count_looks(monkeypatch, looks)
        second = await go_on(registry, session_id, [bash("echo two > file"), {"text": "done"}])
        assert looks == [True], "its start is the end of the turn before"
        assert (await registry.get(ME, session_id)).resident
        assert second.checkpoint_id is not None
        looks.clear()
        report = await registry.rewind(ME, session_id, second.checkpoint_id, dry_run=False, conversation=False)
        assert looks == [False], "only what was changed back is read"
        assert await tree(registry, session_id) == {"file": "one\n"}
        assert report.undo_checkpoint_id is not None
        await registry.rewind(ME, session_id, report.undo_checkpoint_id, dry_run=False, conversation=False)
        assert await tree(registry, session_id) == {"file": "two\n"}


async def test_what_a_process_in_the_background_does_between_two_turns_is_seen_by_the_next_and_by_a_rewind(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as registry:
        late = "for n in 1 2; do while [ ! -e go$n ]; do sleep 0.02; done; echo late$n > file; touch went$n; done"
        leave = f"echo one > file; (setsid sh -c '{late}' < /dev/null > /dev/null 2>&1 &)"
        first = await run(registry, [bash(leave), {"text": "done"}])
        session_id, files = first.session_id, next((tmp_path / "sandboxes").glob("*/workspace"))

        async def goes_on(number: int) -> None:
            (files / f"go{number}").touch()
            with anyio.fail_after(PATIENCE_S):
                while not (files / f"went{number}").exists():
                    await anyio.sleep(0.02)

        await goes_on(1)
        second = await go_on(registry, session_id, [{"text": "done"}])
        assert (await registry.get(ME, session_id)).resident
        assert second.checkpoint_id is not None
        await goes_on(2)
        report = await registry.rewind(ME, session_id, second.checkpoint_id, dry_run=False, conversation=False)
        assert (await tree(registry, session_id))["file"] == "late1\n"
        assert report.undo_checkpoint_id is not None
        await registry.rewind(ME, session_id, report.undo_checkpoint_id, dry_run=False, conversation=False)
        assert (await tree(registry, session_id))["file"] == "late2\n"
