"""Undo through the whole house: checkpoints, rewind, fork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from server.errors import ErrorCode, RookeryError
from server.gateway.scripted import prompt_with
from server.models import SessionState
from server.registry import Registry
from server.requests import ListRequest
from server.resting import seal_files
from tests.house import ME, PATIENCE_S, bash, go_on, open_house, run, say, settled, spawn

pytestmark = pytest.mark.providers


async def tree(registry: Registry, session_id: str) -> dict[str, str | None]:
    listing = await registry.list_files(ME, session_id, depth=8)
    return {
        entry.path: (await registry.read_file(ME, session_id, entry.path)).text
        for entry in listing.entries
        if entry.kind == "file"
    }


async def test_a_rewind_restores_what_bash_did_and_can_itself_be_undone(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("mkdir -p a/b; echo one > a/b/file; echo x > gone"), {"text": "done"}])
        second = await go_on(
            registry, first.session_id, [bash("echo two > a/b/file; rm gone; echo new > new"), {"text": "done"}]
        )
        session_id, point = first.session_id, second.checkpoint_id
        assert point is not None
        plan = await registry.rewind(ME, session_id, point, dry_run=True, conversation=False)
        assert (plan.files_added, plan.files_changed, plan.files_removed) == (1, 1, 1)
        assert plan.undo_checkpoint_id is None
        assert (await tree(registry, session_id))["a/b/file"] == "two\n"
        report = await registry.rewind(ME, session_id, point, dry_run=False, conversation=False)
        assert await tree(registry, session_id) == {"a/b/file": "one\n", "gone": "x\n"}
        assert report.undo_checkpoint_id is not None
        told = await go_on(registry, session_id, [{"reply_with": "reminders"}])
        assert "were taken back" in told.text
        await registry.rewind(ME, session_id, report.undo_checkpoint_id, dry_run=False, conversation=False)
        assert await tree(registry, session_id) == {"a/b/file": "two\n", "new": "new\n"}


async def test_a_conversation_goes_back_too_if_asked_and_the_rewind_can_be_undone(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [{"text": "the word is marmalade"}])
        second = await go_on(registry, first.session_id, [{"text": "the other word is pumpernickel"}])
        assert second.checkpoint_id is not None
        report = await registry.rewind(ME, first.session_id, second.checkpoint_id, dry_run=False, conversation=True)
        third = await go_on(registry, first.session_id, [{"reply_with": "conversation"}])
        assert "marmalade" in third.text
        assert "pumpernickel" not in third.text
        assert report.undo_checkpoint_id is not None
        await registry.rewind(ME, first.session_id, report.undo_checkpoint_id, dry_run=False, conversation=True)
        fourth = await go_on(registry, first.session_id, [{"reply_with": "conversation"}])
        assert "pumpernickel" in fourth.text


async def test_a_rewind_whose_caller_goes_away_is_done_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that went back alone, with the conversation left as it was, are nothing that anybody asked for."""
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo one > file"), {"text": "marmalade"}])
        session_id = first.session_id
        second = await go_on(registry, session_id, [bash("echo two > file"), {"text": "pumpernickel"}])
        restored = anyio.Event()

        async def seal(*arguments: Any) -> None:
            restored.set()
            await anyio.lowlevel.checkpoint()
            await seal_files(*arguments)

        monkeypatch.setattr("server.undo.seal_files", seal)
        async with anyio.create_task_group() as caller:

            async def call() -> None:
                assert second.checkpoint_id is not None
                await registry.rewind(ME, session_id, second.checkpoint_id, dry_run=False, conversation=True)

            caller.start_soon(call)
            await restored.wait()
            caller.cancel_scope.cancel()
        assert await tree(registry, session_id) == {"file": "one\n"}
        said = await go_on(registry, session_id, [{"reply_with": "conversation"}])
        assert "marmalade" in said.text
        assert "pumpernickel" not in said.text


async def test_forks_have_files_and_conversation_of_their_own_and_leave_the_original_alone(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo one > file"), {"text": "the word is marmalade"}])
        steps = [bash("cat file; echo $RANDOM > file"), {"reply_with": "conversation"}]

        ids = await registry.fork(ME, first.session_id, prompt=prompt_with(steps), checkpoint_id=None, count=3)
        for fork in ids:
            outcome = await settled(registry, fork)
            assert "marmalade" in outcome.text
            assert outcome.changed_files == ("file",)
            view = await registry.get(ME, fork)
            assert (view.parent_id, view.root_id) == (first.session_id, first.session_id)
        assert await tree(registry, first.session_id) == {"file": "one\n"}
        assert (await go_on(registry, first.session_id, [{"text": "still mine"}])).text == "still mine"


async def test_a_fork_of_a_fork_of_an_ended_session_and_from_an_old_checkpoint(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo one > file"), {"text": "marmalade"}])
        second = await go_on(registry, first.session_id, [bash("echo two > file"), {"text": "pumpernickel"}])
        await registry.end(ME, first.session_id, delete=False)
        (fork,) = await registry.fork(ME, first.session_id, prompt=None, checkpoint_id=second.checkpoint_id, count=1)
        assert (await registry.outcome(ME, fork)).state is SessionState.IDLE
        assert await tree(registry, fork) == {"file": "one\n"}
        said = await go_on(registry, fork, [{"reply_with": "conversation"}])
        assert "marmalade" in said.text
        assert "pumpernickel" not in said.text
        (second_fork,) = await registry.fork(ME, fork, prompt=None, checkpoint_id=None, count=1)
        assert "marmalade" in (await go_on(registry, second_fork, [{"reply_with": "conversation"}])).text


@pytest.mark.parametrize("limits", [{"principal_sessions": 3}, {"max_sessions": 2, "queue_s": 0}])
@pytest.mark.parametrize("request_id", [None, "the-same"])
async def test_forks_that_cannot_all_be_made_leave_none_behind(
    tmp_path: Path, limits: dict[str, int], request_id: str | None
) -> None:
    """Agents of which nobody was told would work, and cost, unseen."""
    async with open_house(tmp_path, **limits) as registry:
        first = await run(registry, [{"text": "done"}])
        for _ in range(2):
            with pytest.raises(RookeryError, match="None of the forks") as refused:
                await registry.fork(
                    ME,
                    first.session_id,
                    prompt=prompt_with([bash("tail -f /dev/null")]),
                    checkpoint_id=None,
                    count=5,
                    request_id=request_id,
                )
            assert refused.value.code is ErrorCode.TOO_MANY_SESSIONS
            sessions = (await registry.list(ME, ListRequest(limit=100))).sessions
            assert [one.session_id for one in sessions] == [first.session_id]
            assert registry.activity.working == 0
        ids = await registry.fork(
            ME,
            first.session_id,
            prompt=prompt_with([{"text": "x"}]),
            checkpoint_id=None,
            count=2,
            request_id=request_id,
        )
        assert [(await settled(registry, fork)).text for fork in ids] == ["x", "x"]


async def test_a_fork_whose_prompt_is_refused_is_not_there(tmp_path: Path) -> None:
    async with open_house(tmp_path, max_sessions=1, queue_s=0) as registry:
        first = await run(registry, [{"text": "done"}])
        await spawn(registry, [bash("tail -f /dev/null")])
        before = {one.session_id for one in (await registry.list(ME, ListRequest(limit=100))).sessions}
        with pytest.raises(RookeryError):
            await registry.fork(ME, first.session_id, prompt="go on", checkpoint_id=None, count=1)
        assert {one.session_id for one in (await registry.list(ME, ListRequest(limit=100))).sessions} == before


async def test_a_fork_while_a_turn_runs_starts_from_the_turns_start(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo one > file"), {"text": "done"}])

        await say(registry, first.session_id, [bash("echo two > file; tail -f /dev/null")])
        with anyio.fail_after(PATIENCE_S):
            while await tree(registry, first.session_id) != {"file": "two\n"}:
                await anyio.sleep(0.05)
        (fork,) = await registry.fork(ME, first.session_id, prompt=None, checkpoint_id=None, count=1)
        assert await tree(registry, fork) == {"file": "one\n"}


async def test_bad_checkpoints_and_bad_moments_are_typed_errors(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        one = await run(registry, [{"text": "one"}])
        other = await run(registry, [{"text": "other"}])
        for checkpoint_id in ("cp_missing", other.checkpoint_id):
            assert checkpoint_id is not None
            with pytest.raises(RookeryError) as missing:
                await registry.rewind(ME, one.session_id, checkpoint_id, dry_run=True, conversation=False)
            assert missing.value.code is ErrorCode.CHECKPOINT_NOT_FOUND
        busy = await spawn(registry, [bash("tail -f /dev/null")])
        with pytest.raises(RookeryError) as refused:
            await registry.rewind(ME, busy, one.checkpoint_id or "", dry_run=True, conversation=False)
        assert refused.value.code is ErrorCode.SESSION_BUSY
        await registry.end(ME, one.session_id, delete=False)
        with pytest.raises(RookeryError) as ended:
            await registry.rewind(ME, one.session_id, one.checkpoint_id or "", dry_run=True, conversation=False)
        assert ended.value.code is ErrorCode.SESSION_ENDED


async def test_a_rewind_works_after_a_restart(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first = await run(registry, [bash("echo one > file"), {"text": "done"}])
        await go_on(registry, first.session_id, [bash("echo two > file"), {"text": "done"}])
        kept = await registry.create_checkpoint(ME, first.session_id, "before the storm")
        await go_on(registry, first.session_id, [bash("rm file"), {"text": "done"}])
    async with open_house(tmp_path) as registry:
        await registry.rewind(ME, first.session_id, kept.id, dry_run=False, conversation=False)
        assert await tree(registry, first.session_id) == {"file": "two\n"}


async def test_the_same_fork_request_gives_the_same_forks_racing_repeated_and_across_servers(tmp_path: Path) -> None:
    async with open_house(tmp_path) as one, open_house(tmp_path) as other:
        first = await run(one, [bash("echo one > file"), {"text": "done"}])
        answers: list[list[str]] = []

        async def ask(registry: Registry, count: int = 2) -> None:
            prompt = prompt_with([bash("echo once >> file"), {"text": "forked"}])
            answers.append(
                await registry.fork(
                    ME, first.session_id, prompt=prompt, checkpoint_id=None, count=count, request_id="the-same"
                )
            )

        async with anyio.create_task_group() as tasks:
            for registry in (one, one, other):
                tasks.start_soon(ask, registry)
        assert answers[0] == answers[1] == answers[2]
        for fork in answers[0]:
            assert (await settled(one, fork)).text == "forked"
            assert await tree(one, fork) == {"file": "one\nonce\n"}
        # One more was asked for than a first call lived to make: the old ones stay what they are.
        await go_on(one, first.session_id, [bash("echo two > file"), {"text": "done"}])
        await ask(other, count=3)
        assert answers[3][:2] == answers[0]
        assert (await settled(other, answers[3][2])).text == "forked"
        assert await tree(other, answers[3][2]) == {"file": "one\nonce\n"}
        sessions = (await one.list(ME, ListRequest(limit=100))).sessions
        assert {session.session_id for session in sessions} == {first.session_id, *answers[3]}
