"""A server that dies in the middle of a turn on E2B: its agent works on, and the next server goes on with the turn."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from server.models import Event, SessionState, StopReason
from server.registry import Registry
from server.requests import CostRequest
from tests.e2b_cloud.handle import E2BCloud
from tests.house import ME, bash, events, open_house, run, settled, until
from tests.metering import long_unwritten, stretches, unwritten
from tests.providers import settings_on
from tests.workload import ASKING

pytestmark = pytest.mark.e2b

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]

STEPS = [
    {"text": "first words"},
    bash("seq 1 50; touch started; until [ -e go ]; do sleep 0.05; done; seq 51 100"),
    {"text": "second words"},
    bash("echo once >> log; cat log"),
    {"reply_with": "last_tool_result"},
]


@pytest.fixture(autouse=True)
def environment(e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every house of these tests finds its sandboxes at the double."""
    for name, value in e2b_cloud.environment.items():
        monkeypatch.setenv(name, value)


@contextmanager
def victim(
    home: Path, cloud: E2BCloud, steps: Sequence[dict[str, Any]] | None, *, allow_first: bool = False, **more: Any
) -> Iterator[str]:
    """A server, killed at the end; the line that it prints when it is ready: with steps, the session's id.

    Args:
        allow_first: the agent has slept over its questions, and the first was answered.
        more: settings beside those of the kind.
    """
    command = [sys.executable, "-m", "tests.e2b_victim", str(home), json.dumps(settings_on(cloud) | more)]
    if steps is not None:
        command.append(json.dumps(steps))
    if allow_first:
        command.append("--allow-first")
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, **cloud.environment}, start_new_session=True
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline().decode().strip()
        assert line, "the server ended by itself"
        yield line
    finally:
        server.kill()
        assert server.wait() == -9


def wait_until(met: Callable[[], object], otherwise: str) -> None:
    """Wait for what a server in another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def workspace_of(cloud: E2BCloud) -> Path:
    """The workspace of the only sandbox, as a directory of this machine."""
    (sandbox,) = cloud.sandboxes
    return Path(sandbox["tree"]) / "workspace"


async def stored_transcript(registry: Registry, session_id: str) -> list[dict[str, Any]]:
    """The conversation as it was mirrored into the store, without notes of the program to itself."""
    store = registry._services.store
    found = await store.transcript_store(session_id).load({"session_id": session_id, "project_key": "-workspace"})
    assert found is not None
    return [dict(entry) for entry in found if "uuid" in entry]


def written_transcript(cloud: E2BCloud, session_id: str) -> list[dict[str, Any]]:
    """The conversation as the agent's program wrote it into its own file in the sandbox."""
    file = workspace_of(cloud).parent / f"home/agent/.claude/projects/-workspace/{session_id}.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [entry for entry in entries if "uuid" in entry]


def told(log: list[Event]) -> list[tuple[Any, ...]]:
    """What a log says, without what differs from run to run."""
    kept = []
    for event in log:
        text = json.dumps(event.data, sort_keys=True)
        kept.append((event.kind, *(word in text for word in ("first words", "second words", "100", "once"))))
    return kept


async def check(
    registry: Registry, cloud: E2BCloud, session_id: str, undisturbed_steps: Sequence[dict[str, Any]], requests: int
) -> None:
    """Hold a session whose server was killed to all promises; ends it.

    Args:
        undisturbed_steps: what a run says that nobody disturbs, and that waits for nothing.
        requests: how many the model must have got.
    """
    # Line by line: what was mirrored is what the agent's program itself wrote down, without gap or duplicate.
    assert await stored_transcript(registry, session_id) == written_transcript(cloud, session_id)
    # And the log says the same, in the same order, as that of a run which nobody disturbed.
    log = await events(registry, session_id)
    undisturbed = await run(registry, undisturbed_steps)
    assert told(log) == told(await events(registry, undisturbed.session_id))
    for one in (session_id, undisturbed.session_id):
        costs = await registry.costs(ME, CostRequest(session_id=one))
        assert costs.total.requests == requests
        await registry.end(ME, one, delete=True)
    assert cloud.living() == []


@pytest.mark.parametrize("meanwhile", ["the tool still runs", pytest.param("the tool ended", marks=pytest.mark.slow)])
async def test_a_turn_goes_on_when_its_server_was_killed(tmp_path: Path, e2b_cloud: E2BCloud, meanwhile: str) -> None:
    home = tmp_path / "home"
    with victim(home, e2b_cloud, STEPS) as session_id:
        workspace = workspace_of(e2b_cloud)
        wait_until((workspace / "started").exists, "the tool did not start")
    identity = e2b_cloud.living()
    if meanwhile == "the tool ended":
        (workspace / "go").touch()
    async with open_house(home, **settings_on(e2b_cloud)) as registry:
        if meanwhile == "the tool still runs":
            with anyio.fail_after(PATIENCE_S):
                while not (await registry.get(ME, session_id)).resident:
                    await anyio.sleep(0.05)
            (workspace / "go").touch()
        outcome = await settled(registry, session_id)
        assert outcome.error is None
        assert (outcome.stop_reason, outcome.state, outcome.turn) == (StopReason.END_TURN, SessionState.IDLE, 1)
        assert outcome.text.count("once") == 1
        assert e2b_cloud.living() == identity
        undisturbed = [STEPS[0], bash("seq 1 50; touch started; seq 51 100"), *STEPS[2:]]
        await check(registry, e2b_cloud, session_id, undisturbed, 3)


@pytest.mark.parametrize("calls", [1, 3])
async def test_a_call_that_was_taken_up_again_when_its_server_was_killed_runs_once_and_leaves_the_others_waiting(
    tmp_path: Path, e2b_cloud: E2BCloud, calls: int
) -> None:
    home, policies = tmp_path / "home", tmp_path / "policies"
    policies.mkdir()
    (policies / "asking.yaml").write_text(ASKING)
    asking = {"policy": "asking", "policy_dir": str(policies), "approval_hot_s": 0.3}
    steps = [
        bash("touch started; until test -e go; do sleep 0.05; done; echo once"),
        *({**bash(f"touch {number}; echo ran"), "parallel": True} for number in range(1, calls)),
        {"reply_with": "tool_results"},
    ]
    with victim(home, e2b_cloud, steps, allow_first=True, **asking) as session_id:
        workspace = workspace_of(e2b_cloud)
        wait_until((workspace / "started").exists, "the tool did not start")
    async with open_house(home, **settings_on(e2b_cloud), **asking) as registry:
        with anyio.fail_after(PATIENCE_S):
            while not (await registry.get(ME, session_id)).resident:
                await anyio.sleep(0.05)
        (workspace / "go").touch()
        for left in range(calls - 1, 0, -1):
            asleep = await until(
                registry, session_id, lambda now: now.stop_reason is StopReason.AWAITING_APPROVAL and now.changed_files
            )
            assert len(asleep.pending_approvals) == left
            # The model is not asked before all calls are done.
            assert asleep.cost.requests == 1
            await registry.answer_approval(ME, asleep.pending_approvals[0].approval_id, allow=True)
            await until(registry, session_id, lambda now, left=left: len(now.pending_approvals) < left)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn, outcome.error) == (StopReason.END_TURN, 1, None)
        assert outcome.text.split() == ["once", *["ran"] * (calls - 1)]
        assert outcome.cost.requests == 2
        await registry.end(ME, session_id, delete=True)


async def test_a_question_that_was_hot_when_its_server_was_killed_is_answered_at_the_next(
    tmp_path: Path, e2b_cloud: E2BCloud
) -> None:
    home, policies = tmp_path / "home", tmp_path / "policies"
    policies.mkdir()
    (policies / "asking.yaml").write_text(ASKING)
    asking: dict[str, Any] = {"policy": "asking", "policy_dir": str(policies)}
    steps = [bash("touch started; echo once"), {"reply_with": "last_tool_result"}]
    with (
        victim(home, e2b_cloud, steps, **asking) as session_id,
        closing(sqlite3.connect(home / "rookery.db")) as database,
    ):
        asked = "SELECT 1 FROM approvals WHERE status = 'pending'"
        wait_until(lambda: database.execute(asked).fetchone(), "nothing was asked")
    identity = e2b_cloud.living()
    async with open_house(home, **settings_on(e2b_cloud), **asking) as registry:
        with anyio.fail_after(PATIENCE_S):
            while not (await registry.get(ME, session_id)).resident:
                await anyio.sleep(0.05)
        (pending,) = (await until(registry, session_id, lambda now: now.pending_approvals)).pending_approvals
        await registry.answer_approval(ME, pending.approval_id, allow=True)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.turn, outcome.error) == (StopReason.END_TURN, 1, None)
        assert (outcome.text.split(), outcome.denials) == (["once"], 0)
        assert await registry.list_approvals(ME) == []
        assert e2b_cloud.living() == identity
        await registry.end(ME, session_id, delete=True)


async def test_time_of_a_sandbox_whose_agent_is_taken_over_is_charged_without_gap_or_overlap(
    tmp_path: Path, e2b_cloud: E2BCloud
) -> None:
    home = tmp_path / "home"
    price: dict[str, Any] = {"sandbox_usd_per_s": 0.01}
    with victim(home, e2b_cloud, STEPS, **price) as session_id:
        await long_unwritten(home, session_id)
    since, heard_for = unwritten(home, session_id)
    assert since is not None
    assert stretches(home, session_id) == []
    async with open_house(home, **settings_on(e2b_cloud), **price) as registry:
        with anyio.fail_after(PATIENCE_S):
            while not (await registry.get(ME, session_id)).resident:
                await anyio.sleep(0.05)
        (workspace_of(e2b_cloud) / "go").touch()
        assert (await settled(registry, session_id)).stop_reason is StopReason.END_TURN
        await registry.end(ME, session_id, delete=False)
        lost, *own = stretches(home, session_id)
        # The sandbox ran on, and cost, after its server was gone.
        assert lost[1] > lost[0] + heard_for
        assert [start for start, _, _ in (lost, *own)] == [since, *(end for _, end, _ in (lost, *own))][:-1]
        ran = (await registry.costs(ME, CostRequest(session_id=session_id))).total.sandbox_seconds
        assert ran == pytest.approx((own[-1][1] - since).total_seconds(), abs=0.1)
        assert unwritten(home, session_id)[0] is None


KILLS = int(os.environ.get("ROOKERY_TEST_E2B_KILLS", "3"))
CALLS = 8


@pytest.mark.slow
@pytest.mark.parametrize("run_number", range(2))
async def test_a_turn_survives_one_server_after_the_other(tmp_path: Path, e2b_cloud: E2BCloud, run_number: int) -> None:
    seed = os.environ.get("ROOKERY_TEST_SEED", str(random.randrange(10**9)))
    print(f"seed {seed}")
    chance = random.Random(f"{seed} {run_number}")
    home = tmp_path / "home"
    calls = [bash(f"echo {number} >> log; seq {number} 400; sleep 0.5") for number in range(CALLS)]
    steps = [*calls, bash("cat log"), {"reply_with": "last_tool_result"}]
    with victim(home, e2b_cloud, steps) as session_id:
        time.sleep(chance.uniform(0, 2))
    for _ in range(KILLS - 1):
        with victim(home, e2b_cloud, None):
            time.sleep(chance.uniform(0, 2))
    async with open_house(home, **settings_on(e2b_cloud)) as registry:
        outcome = await settled(registry, session_id)
        assert outcome.error is None
        assert (outcome.stop_reason, outcome.turn) == (StopReason.END_TURN, 1)
        assert outcome.text.split() == [str(number) for number in range(CALLS)]
        await check(registry, e2b_cloud, session_id, steps, CALLS + 2)
