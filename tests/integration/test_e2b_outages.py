"""Clouds that cannot be reached, or lose a sandbox, at the wrong moment: nothing is gone on from in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import structlog.testing

from server import resting
from server.errors import ErrorCode
from server.inbox import Leave
from server.launching import agents
from server.models import EventKind, SessionState, StopReason
from server.registry import Registry
from server.sandboxes.e2b import channel, processes
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_sessions import made, named_point
from tests.house import ME, PATIENCE_S, bash, events, go_on, open_house, say, settled

pytestmark = [
    pytest.mark.e2b,
    pytest.mark.slow,
    pytest.mark.parametrize("sandbox_kind", ["e2b"], indirect=True),
]


def cut_off(cloud: E2BCloud, hasty: pytest.MonkeyPatch) -> None:
    """From now on no sandbox can be reached, and who waits for one gives up soon."""
    hasty.setattr(resting, "SEAL_S", 2.0)
    hasty.setattr(processes, "END_S", 1.0)
    hasty.setattr(agents, "STOP_TIMEOUT_S", 2.0)
    hasty.setattr(channel, "GIVE_UP_S", 2.0)
    refusal: dict[str, Any] = {"status": 503, "headers": {"Should-Retry": "false"}, "times": None}
    body = '{"code": 503, "message": "not now"}'
    cloud.fault("control", "/connect$", "status", **refusal, body=body)
    cloud.fault("envd", ".", "status", **refusal, body=body)
    cloud.drop_streams()


def pass_over(cloud: E2BCloud, session_id: str, lost: list[str]) -> None:
    """Sandboxes can be reached again; that of the session was paused meanwhile, and comes back without files."""
    cloud.clear_faults()
    [one] = [one for one in cloud.sandboxes if session_id in one["metadata"].values()]
    cloud.pause(one["sandboxID"])
    cloud.switch(half_restored=lost)


@pytest.mark.parametrize("lost", [False, True], ids=["nothing is lost", "the sandbox loses files"])
async def test_a_session_that_could_not_be_looked_at_when_it_fell_asleep_is_held_to_its_last_turns_end(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    async with open_house(tmp_path, idle_s=3600, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        with monkeypatch.context() as hasty:
            cut_off(e2b_cloud, hasty)
            await registry._fleet.dismiss(session_id, Leave.HIBERNATE)
        assert not (await registry.get(ME, session_id)).resident
        pass_over(e2b_cloud, session_id, ["/workspace"] if lost else [])
        outcome = await go_on(registry, session_id, [bash("touch ran; cat f6"), {"reply_with": "conversation"}])
        if not lost:
            assert outcome.error is None
            assert "marmalade" in outcome.text
            return
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.SANDBOX_LOST
        e2b_cloud.switch(half_restored=[])
        [fork] = await registry.fork(ME, session_id, prompt=None, checkpoint_id=named_point(outcome), count=1)
        names = {entry.path for entry in (await registry.list_files(ME, fork, depth=2)).entries}
        assert {"src/main", "link", "f1", "f6"} <= names
        assert "ran" not in names


def assert_told_in_a_line(logs: Sequence[Mapping[str, Any]]) -> None:
    """The failed actor says why in one line of bounded length; where it was is for who debugs."""
    [told] = [line for line in logs if line["event"] == "session actor failed"]
    assert told["error"].startswith("sandbox_")
    assert "exc_info" not in told
    assert len(str(told)) < 1_500
    assert {line["log_level"] for line in logs if "exc_info" in line} <= {"debug"}


async def working(registry: Registry, cloud: E2BCloud, session_id: str) -> None:
    """Begin a turn that works until somebody stops it, and wait until it has changed files."""
    await say(registry, session_id, [bash("rm f1; echo cut > cut; sleep 600"), {"text": "never"}])
    tree = Path(next(one["tree"] for one in cloud.sandboxes))
    with anyio.fail_after(PATIENCE_S):
        while not (tree / "workspace" / "cut").exists():
            await anyio.sleep(0.05)


async def test_a_turn_that_was_cut_off_unseen_is_gone_on_from_only_with_a_word_to_the_user_and_to_the_agent(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path, idle_s=3600, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        await working(registry, e2b_cloud, session_id)
        with monkeypatch.context() as hasty, structlog.testing.capture_logs() as logs:
            cut_off(e2b_cloud, hasty)
            with anyio.fail_after(PATIENCE_S):
                while session_id in registry._fleet.actors:
                    await anyio.sleep(0.05)
            assert_told_in_a_line(logs)
            # It may still be at work there, so that is no end; the user says that it is.
            assert (await registry.outcome(ME, session_id)).state is SessionState.RUNNING
            await registry.interrupt(ME, session_id)
        cut = await settled(registry, session_id)
        assert cut.stop_reason is StopReason.INTERRUPTED
        pass_over(e2b_cloud, session_id, [])
        outcome = await go_on(registry, session_id, [{"text": "done"}])
        assert outcome.error is None
        conversation = registry._services.store.transcript_store(session_id)
        told = await conversation.load({"session_id": session_id, "project_key": "-workspace"})
        assert "may lack files or changes" in repr(told)
        notices = [event.data["text"] for event in await events(registry, session_id) if event.kind is EventKind.NOTICE]
        [doubt] = [text for text in notices if "cannot be known" in text]
        assert "1 files were added, 0 changed and 1 removed" in doubt
        assert cut.checkpoint_id is not None
        assert cut.checkpoint_id in doubt
        await registry.rewind(ME, session_id, cut.checkpoint_id, dry_run=False, conversation=False)
        assert (await registry.read_file(ME, session_id, "f1")).text == "1\n"


async def test_a_turn_whose_sandbox_dies_is_lost_and_a_fork_goes_on_from_its_start(
    tmp_path: Path, sandbox_kind: str, e2b_cloud: E2BCloud
) -> None:
    async with open_house(tmp_path, idle_s=3600, e2b_rest_s=1) as registry:
        session_id = (await made(registry)).session_id
        await working(registry, e2b_cloud, session_id)
        [identity] = e2b_cloud.living()
        await anyio.to_thread.run_sync(e2b_cloud.kill, identity)
        outcome = await settled(registry, session_id)
        assert outcome.error is not None
        assert (outcome.stop_reason, outcome.error.code) == (StopReason.ERROR, ErrorCode.SANDBOX_LOST)
        assert outcome.checkpoint_id is not None
        [fork] = await registry.fork(ME, session_id, prompt=None, checkpoint_id=outcome.checkpoint_id, count=1)
        assert (await registry.read_file(ME, fork, "f1")).text == "1\n"
