"""What can go wrong with the cloud: each fault is a typed outcome, loses nothing, and leaves no sandbox behind.

The fixture of the double fails every test after which a sandbox is left, running or paused.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import SandboxSpec
from server.sandboxes.e2b.provider import E2BProvider, open_e2b
from server.sandboxes.e2b.sandbox import E2BSandbox
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_providers import in_one_task, options_for
from tests.sandboxes import spec_for

PATIENCE_S = 60.0
CREATE = "^POST /v2/sandboxes$"
LIMITED = json.dumps({"code": 429, "message": "too many sandboxes"})

pytestmark = pytest.mark.e2b


async def owned(provider: E2BProvider) -> list[str]:
    """E2B's names of all sandboxes that are known to be ours."""
    return [reference["sandbox"] for reference in await provider.owned()]


async def refused(call: Awaitable[Any]) -> RookeryError:
    """The error of a call that must fail."""
    with anyio.fail_after(PATIENCE_S), pytest.raises(RookeryError) as caught:
        await call
    return caught.value


# At the creation.


@pytest.mark.slow
async def test_a_limit_that_passes_is_waited_for(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec
) -> None:
    headers = {"Retry-After": "0", "Should-Retry": "true"}
    e2b_cloud.fault("control", CREATE, "status", status=429, headers=headers, body=LIMITED, times=2)
    sandbox = await e2b_provider.create(e2b_spec)
    assert len(e2b_cloud.sandboxes) == 1
    assert e2b_cloud.struck() == [2]
    await sandbox.destroy()


REFUSALS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "429": ({"status": 429, "headers": {"Should-Retry": "false"}, "body": LIMITED}, True, "limits"),
    "500 that is not JSON": ({"status": 500, "body": "<html>upstream connect error</html>"}, True, "Try again"),
    "500": ({"status": 500, "body": json.dumps({"code": 500, "message": "boom"})}, True, "Try again"),
    "503": (
        {"status": 503, "headers": {"Should-Retry": "false"}, "body": json.dumps({"code": 503, "message": "full"})},
        True,
        "Try again",
    ),
    "401": ({"status": 401, "body": json.dumps({"code": 401, "message": "bad key"})}, False, "E2B_API_KEY"),
    "404": ({"status": 404, "body": json.dumps({"code": 404, "message": "no template"})}, False, "rookery e2b build"),
}


@pytest.mark.parametrize(
    "kind", [kind if "JSON" in kind else pytest.param(kind, marks=pytest.mark.slow) for kind in REFUSALS]
)
async def test_a_refused_creation_says_what_to_do(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec, kind: str
) -> None:
    fault, retryable, said = REFUSALS[kind]
    e2b_cloud.fault("control", CREATE, "status", times=None, **fault)
    error = await refused(e2b_provider.create(e2b_spec))
    assert error.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert error.retryable is retryable
    assert said in error.message
    assert e2b_cloud.api_key not in error.message + str(error.detail)
    assert e2b_cloud.sandboxes == []
    e2b_cloud.clear_faults()
    again = await e2b_provider.create(e2b_spec)
    await again.destroy()


async def test_a_creation_whose_answer_is_lost_leaves_nothing_behind(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec
) -> None:
    e2b_cloud.fault("control", CREATE, "lost_reply")
    try:
        sandbox = await e2b_provider.create(e2b_spec)
    except RookeryError as error:
        assert error.code is ErrorCode.SANDBOX_UNAVAILABLE
        assert error.retryable
        assert e2b_cloud.sandboxes == []
    else:
        assert len(e2b_cloud.sandboxes) == 1
        await sandbox.destroy()
    assert e2b_cloud.struck() == [1]


@pytest.mark.parametrize("request_of", ["/process.Process/Start", pytest.param("/files", marks=pytest.mark.slow)])
async def test_a_sandbox_that_dies_while_it_is_made_ready_leaves_nothing_behind(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec, request_of: str
) -> None:
    e2b_cloud.fault("envd", f"^POST {request_of}$", "kill")
    error = await refused(e2b_provider.create(e2b_spec))
    assert error.code in (ErrorCode.SANDBOX_LOST, ErrorCode.SANDBOX_UNAVAILABLE)
    assert e2b_cloud.sandboxes == []


@pytest.mark.slow
async def test_a_cancelled_creation_leaves_nothing_behind(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec
) -> None:
    e2b_cloud.fault("envd", "^POST /process.Process/Start$", "slow", seconds=30)
    with anyio.move_on_after(1.5) as scope:
        await e2b_provider.create(e2b_spec)
    assert scope.cancelled_caught
    assert e2b_cloud.sandboxes == []


@pytest.mark.slow
async def test_a_slow_cloud_is_slow_and_nothing_more(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec
) -> None:
    e2b_cloud.fault("control", CREATE, "slow", seconds=1)
    e2b_cloud.fault("envd", "Process", "slow", seconds=0.5, times=3)
    sandbox = await e2b_provider.create(e2b_spec)
    assert (await sandbox.run(["echo", "here"])).stdout == b"here\n"
    await sandbox.destroy()


# While an agent works.

COUNTING = """
import sys
for line in sys.stdin:
    print("heard", line, end="", flush=True)
"""


async def conversation(sandbox: E2BSandbox, disturb: Callable[[], None], disturbances: int) -> None:
    """Talk with an agent, line by line, while things go wrong; every line must be answered once and in order."""
    agent = await sandbox.start_agent(["python3", "-c", COUNTING], {})
    sent, count = [], 400

    async def tell() -> None:
        for number in range(count):
            line = b"%d %s\n" % (number, b"x" * (number * 37 % 3000))
            sent.append(b"heard " + line)
            await agent.write(line)
            if number % (count // disturbances) == count // disturbances // 2:
                await anyio.to_thread.run_sync(disturb)
        await agent.close_input()

    heard = b""
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell)
            while piece := await agent.read():
                heard += piece
    assert heard.splitlines(keepends=True) == sent
    assert await agent.wait() == 0


async def test_a_conversation_survives_streams_that_break_off(e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox) -> None:
    await conversation(e2b_sandbox, e2b_cloud.drop_streams, 4)


@pytest.mark.slow
async def test_a_conversation_survives_commands_that_are_killed_at_their_time(
    e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox
) -> None:
    await conversation(e2b_sandbox, e2b_cloud.expire_commands, 3)


@pytest.mark.slow
async def test_a_conversation_survives_a_dead_subscriber_that_holds_up_everybody(
    e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox
) -> None:
    e2b_cloud.switch(wedged_subscribers=True)
    await conversation(e2b_sandbox, e2b_cloud.drop_streams, 2)


@pytest.mark.slow
async def test_a_conversation_survives_inputs_whose_receipt_is_lost(
    e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox
) -> None:
    def lose() -> None:
        e2b_cloud.fault("envd", "^POST /process.Process/(StreamInput|SendInput)$", "lost_reply")
        e2b_cloud.drop_streams()

    await conversation(e2b_sandbox, lose, 2)


@pytest.mark.slow
async def test_a_conversation_survives_a_pause_behind_our_back(e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox) -> None:
    identity = str(e2b_sandbox.reference["sandbox"])
    await conversation(e2b_sandbox, lambda: e2b_cloud.pause(identity), 2)
    assert e2b_cloud.sandbox(identity)["state"] == "running"


@pytest.mark.slow
async def test_a_conversation_survives_a_control_plane_that_refuses_for_a_while(
    e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox
) -> None:
    def disturb() -> None:
        e2b_cloud.fault("control", "/connect$", "status", status=500, body="<html>", times=2)
        e2b_cloud.drop_streams()

    await conversation(e2b_sandbox, disturb, 2)


@pytest.mark.slow
async def test_only_short_commands_have_a_deadline(e2b_cloud: E2BCloud, e2b_sandbox: E2BSandbox) -> None:
    agent = await e2b_sandbox.start_agent(["cat"], {})
    commands = e2b_cloud.sandbox(str(e2b_sandbox.reference["sandbox"]))["commands"]
    assert commands
    assert [one["deadline_s"] for one in commands] == [None] * len(commands)
    await agent.terminate()


async def test_an_agent_whose_sandbox_dies_is_lost_and_not_at_its_end(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec, e2b_sandbox: E2BSandbox
) -> None:
    agent = await e2b_sandbox.start_agent(["/bin/sh", "-c", "echo up; sleep 600"], {})
    with anyio.fail_after(PATIENCE_S):
        assert await agent.read() == b"up\n"
    await anyio.to_thread.run_sync(e2b_cloud.kill, str(e2b_sandbox.reference["sandbox"]))
    assert (await refused(agent.read())).code is ErrorCode.SANDBOX_LOST
    assert (await refused(e2b_sandbox.run(["true"]))).code is ErrorCode.SANDBOX_LOST
    assert (await refused(e2b_provider.attach(e2b_sandbox.reference, e2b_spec))).code is ErrorCode.SANDBOX_LOST
    assert await owned(e2b_provider) == []


# At the end of the longest stretch that the plan allows.


@pytest.mark.slow
async def test_an_agent_at_work_goes_on_past_the_longest_stretch_of_the_plan(
    e2b_cloud: E2BCloud, e2b_spec: SandboxSpec
) -> None:
    e2b_cloud.plan(longest_s=4)
    counting = "n=0; while [ $n -lt 60 ]; do n=$((n + 1)); echo $n; sleep 0.25; done"
    async with in_one_task(open_e2b(options_for(e2b_cloud, timeout_s=3))) as provider:
        sandbox = await provider.create(e2b_spec)
        agent = await sandbox.start_agent(["/bin/sh", "-c", counting], {})
        heard = b""
        with anyio.fail_after(PATIENCE_S):
            while piece := await agent.read():
                heard += piece
        assert [int(line) for line in heard.split()] == list(range(1, 61))
        resumed = [request for request in e2b_cloud.requests if request.endswith("/connect")]
        assert len(resumed) >= 2
        await sandbox.destroy()


@pytest.mark.slow
async def test_a_life_that_the_plan_does_not_allow_is_refused_with_the_setting_that_is_to_be_changed(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec
) -> None:
    e2b_cloud.plan(longest_s=60)
    error = await refused(e2b_provider.create(e2b_spec))
    assert (error.code, error.retryable) == (ErrorCode.SANDBOX_UNAVAILABLE, False)
    assert "ROOKERY_E2B_TIMEOUT_S" in error.message
    assert e2b_cloud.sandboxes == []


# At the end.


@pytest.mark.slow
async def test_a_sandbox_that_could_not_be_ended_is_still_ours_and_can_be_ended_later(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec
) -> None:
    sandbox = await e2b_provider.create(e2b_spec)
    e2b_cloud.fault("control", "^DELETE /sandboxes/", "status", times=None, status=500, body="oops")
    error = await refused(sandbox.destroy())
    assert error.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert await owned(e2b_provider) == [sandbox.reference["sandbox"]]
    e2b_cloud.clear_faults()
    await (await e2b_provider.attach(sandbox.reference, e2b_spec)).destroy()
    assert await owned(e2b_provider) == []


@pytest.mark.slow
async def test_a_list_that_cannot_be_had_is_no_empty_list(e2b_cloud: E2BCloud, e2b_provider: E2BProvider) -> None:
    e2b_cloud.fault("control", "^GET /v2/sandboxes$", "status", times=None, status=500, body="oops")
    assert (await refused(e2b_provider.owned())).code is ErrorCode.SANDBOX_UNAVAILABLE


@pytest.mark.slow
async def test_one_home_never_sees_the_sandboxes_of_another(
    e2b_cloud: E2BCloud, e2b_provider: E2BProvider, e2b_spec: SandboxSpec, e2b_sandbox: E2BSandbox
) -> None:
    async with in_one_task(open_e2b(options_for(e2b_cloud))) as other:
        assert await owned(other) == []
    assert await owned(e2b_provider) == [e2b_sandbox.reference["sandbox"]]


@pytest.mark.slow
async def test_the_plan_is_kept_to_by_queueing(e2b_cloud: E2BCloud, e2b_spec: SandboxSpec) -> None:
    e2b_cloud.plan(concurrent=1, per_second=1000)
    options = options_for(e2b_cloud, concurrency=1, queue_s=0.5)
    async with in_one_task(open_e2b(options)) as provider:
        first = await provider.create(e2b_spec)
        error = await refused(provider.create(spec_for(e2b_spec.gateway_socket)))
        assert (error.code, error.retryable) == (ErrorCode.TOO_MANY_SESSIONS, True)
        assert "ROOKERY_E2B_CONCURRENCY" in error.message
        await first.destroy()
        await (await provider.create(spec_for(e2b_spec.gateway_socket))).destroy()
