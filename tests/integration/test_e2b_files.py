"""Files of sessions in E2B's cloud: sealed while they sleep, never gone on from when lost, kept when they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ErrorCode, RookeryError
from server.inbox import Leave
from server.models import SessionState, StopReason
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_sessions import asleep, made, named_point, state_of
from tests.house import ME, bash, go_on, open_house, settled

pytestmark = [
    pytest.mark.e2b,
    pytest.mark.slow,
    pytest.mark.parametrize("sandbox_kind", ["e2b"], indirect=True),
]


async def test_a_sleeping_session_is_looked_at_without_waking_it_and_goes_on_when_it_is_whole(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud
) -> None:
    async with open_house(tmp_path, idle_s=0.2, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        await asleep(registry, e2b_cloud, session_id)
        listing = await registry.list_files(ME, session_id, depth=3)
        assert {entry.path: entry.kind for entry in listing.entries}["link"] == "symlink"
        assert (await registry.read_file(ME, session_id, "src/main")).text == "one\n"
        with pytest.raises(RookeryError, match="invalid_argument"):
            await registry.read_file(ME, session_id, "link")
        report = await registry.diff(
            ME, session_id, from_checkpoint_id=None, to_checkpoint_id=None, paths=None, max_bytes=10_000
        )
        assert report.files_added == 8
        assert state_of(e2b_cloud, session_id) == "paused"
        outcome = await go_on(
            registry, session_id, [bash("cat src/main; echo two > src/main"), {"reply_with": "conversation"}]
        )
        assert outcome.error is None
        assert "marmalade" in outcome.text
        assert outcome.changed_files == ("src/main",)


@pytest.mark.parametrize("lost", ["/workspace", "/var/lib/rookery"])
async def test_what_came_back_incomplete_is_lost_and_a_fork_goes_on_from_the_checkpoint(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud, lost: str
) -> None:
    async with open_house(tmp_path, idle_s=0.2, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        await asleep(registry, e2b_cloud, session_id)
        e2b_cloud.switch(half_restored=[lost])
        outcome = await go_on(registry, session_id, [bash("echo must not run > ran"), {"text": "no"}])
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.SANDBOX_LOST
        assert "fork_session" in outcome.error.message
        point = outcome.error.message.split('checkpoint_id="')[1].split('"')[0]
        # Every other way in says the same, and looking still works from what is kept here.
        with pytest.raises(RookeryError, match="sandbox_lost"):
            await registry.create_checkpoint(ME, session_id)
        assert (await registry.read_file(ME, session_id, "f6")).text == "6\n"
        e2b_cloud.switch(half_restored=[])
        [fork] = await registry.fork(ME, session_id, prompt=None, checkpoint_id=point, count=1)
        told = await go_on(registry, fork, [bash("cat src/main f1 f2 f3 f4 f5 f6"), {"reply_with": "conversation"}])
        assert told.error is None
        assert "marmalade" in told.text
        names = {entry.path for entry in (await registry.list_files(ME, fork, depth=2)).entries}
        assert {"src/main", "link", "f1", "f6"} <= names
        assert "ran" not in names


async def test_an_ended_session_costs_nothing_and_its_files_stay(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud
) -> None:
    async with open_house(tmp_path, idle_s=0.2, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        second = await go_on(registry, session_id, [bash("echo two > src/main; rm f1"), {"text": "done"}])
        await registry.end(ME, session_id, delete=False)
        assert state_of(e2b_cloud, session_id) is None
        assert (await registry.read_file(ME, session_id, "src/main")).text == "two\n"
        patch = (await registry.patch(ME, session_id)).decode()
        assert "+two" in patch
        assert second.checkpoint_id is not None
        [fork] = await registry.fork(ME, session_id, prompt=None, checkpoint_id=second.checkpoint_id, count=1)
        assert (await registry.read_file(ME, fork, "src/main")).text == "one\n"
        assert (await registry.outcome(ME, session_id)).state is SessionState.ENDED
        await registry.end(ME, fork, delete=True)
        await registry.end(ME, session_id, delete=True)
        assert e2b_cloud.sandboxes == []


async def test_a_file_written_into_a_sleeping_session_is_sealed_again(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud
) -> None:
    async with open_house(tmp_path, idle_s=0.2, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        await asleep(registry, e2b_cloud, session_id)
        await registry.write_file(ME, session_id, "src/new", b"from outside\n")
        await asleep(registry, e2b_cloud, session_id)
        assert (await registry.read_file(ME, session_id, "src/new")).text == "from outside\n"
        outcome = await go_on(registry, session_id, [bash("cat src/new > copy"), {"text": "done"}])
        assert outcome.stop_reason is StopReason.END_TURN
        assert (await registry.read_file(ME, session_id, "copy")).text == "from outside\n"
        await settled(registry, session_id)


@pytest.mark.parametrize("lost", [False, True], ids=["nothing is lost", "the sandbox loses files"])
async def test_a_rewind_of_a_sleeping_session_is_what_the_next_wake_is_held_to(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud, lost: bool
) -> None:
    async with open_house(tmp_path, idle_s=0.2, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        second = await go_on(registry, session_id, [bash("echo two > src/main; rm f1"), {"text": "done"}])
        assert second.checkpoint_id is not None
        await asleep(registry, e2b_cloud, session_id)
        await registry.rewind(ME, session_id, second.checkpoint_id, dry_run=False, conversation=False)
        await asleep(registry, e2b_cloud, session_id)
        assert (await registry.read_file(ME, session_id, "f1")).text == "1\n"
        e2b_cloud.switch(half_restored=["/workspace"] if lost else [])
        outcome = await go_on(registry, session_id, [bash("cat src/main f1"), {"reply_with": "last_tool_result"}])
        if not lost:
            assert outcome.text.split() == ["one", "1"]
            return
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.SANDBOX_LOST
        e2b_cloud.switch(half_restored=[])
        [fork] = await registry.fork(ME, session_id, prompt=None, checkpoint_id=named_point(outcome), count=1)
        assert (await registry.read_file(ME, fork, "src/main")).text == "one\n", "as it was after the rewind"
        assert (await registry.read_file(ME, fork, "f1")).text == "1\n"


async def test_a_dry_run_beside_a_living_agent_does_not_count_as_its_sleep(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud
) -> None:
    async with open_house(tmp_path, idle_s=3600, e2b_rest_s=1) as registry:
        first = await made(registry)
        assert first.checkpoint_id is not None
        await registry.rewind(ME, first.session_id, first.checkpoint_id, dry_run=True, conversation=False)
        await go_on(registry, first.session_id, [bash("echo two > src/main"), {"text": "done"}])
        assert (await registry.read_file(ME, first.session_id, "src/main")).text == "two\n"
        await registry._fleet.dismiss(first.session_id, Leave.HIBERNATE)
        await asleep(registry, e2b_cloud, first.session_id)
        outcome = await go_on(registry, first.session_id, [bash("cat src/main"), {"reply_with": "last_tool_result"}])
        assert outcome.error is None
        assert outcome.text.strip() == "two"
