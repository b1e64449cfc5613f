"""Files of sessions in E2B's cloud: sealed while they sleep, never gone on from when lost, kept when they end."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.models import Outcome, SessionState, StopReason
from server.registry import Registry
from tests.e2b_cloud.handle import E2BCloud
from tests.house import ME, PATIENCE_S, bash, go_on, open_house, run, settled

pytestmark = [
    pytest.mark.e2b,
    pytest.mark.slow,
    pytest.mark.parametrize("sandbox_kind", ["e2b"], indirect=True),
]


async def asleep(registry: Registry, cloud: E2BCloud, session_id: str) -> None:
    """Wait until a session hibernates and its sandbox is paused."""
    with anyio.fail_after(PATIENCE_S):
        while (await registry.get(ME, session_id)).resident or state_of(cloud, session_id) != "paused":
            await anyio.sleep(0.1)


def state_of(cloud: E2BCloud, session_id: str) -> str | None:
    found = [one["state"] for one in cloud.sandboxes if session_id in one["metadata"].values()]
    return found[0] if found else None


async def made(registry: Registry) -> Outcome:
    """A session with files that were made by Bash."""
    work = "mkdir -p src; echo one > src/main; ln -s src/main link; for n in 1 2 3 4 5 6; do echo $n > f$n; done"
    outcome = await run(registry, [bash(work), {"text": "the word is marmalade"}])
    assert outcome.error is None, outcome.error
    return outcome


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
