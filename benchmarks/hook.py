"""What the permission hook adds to a tool call: three sessions in turn, in one run, that make the same calls of Bash.

All live in the same house: real CLI, real sandbox, real store, scripted model. One has no hook at all and the CLI's own
rule that allows Bash, so nothing asks the host. One has a hook that allows at once without looking: what it adds to a
call is the price of any hook in this house. The third has Rookery's; what it adds beyond the second is the decision.
Target: the third adds at most 5 ms to a call of the first (issue 4).

Two more sessions, beside the house, are the SDK and the CLI alone, without a hook and with one that allows at once:
what that one adds is the price of the CLI and the SDK, and what a hook costs in this house beyond it is the host's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookContext,
    HookInput,
    HookJSONOutput,
    HookMatcher,
    ResultMessage,
)
from claude_agent_sdk.types import HookEvent

from rookery.application import open_registry
from rookery.provider import cli_path
from server.agent import agent, launch
from server.agent.permissions import PermissionGate
from server.gateway.listener import loopback_listener
from server.gateway.scripted import prompt_with, serve_scripted
from server.registry import Registry
from server.requests import PromptRequest, SpawnRequest
from server.settings import Settings

TARGET_MS: Final = 5.0
ME: Final = "local"


def instant_hooks(gate: PermissionGate) -> dict[HookEvent, list[HookMatcher]]:
    """A hook that allows without looking."""
    return {"PreToolUse": [HookMatcher(hooks=[allow_at_once], timeout=60.0, on_failure="block")]}


def no_hooks(gate: PermissionGate) -> dict[HookEvent, list[HookMatcher]]:
    """No hook."""
    return {}


async def allow_at_once(hook_input: HookInput, tool_use_id: str | None, context: HookContext) -> HookJSONOutput:
    """Allow without looking."""
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "allow"}}


@contextmanager
def started_with(hooks: Callable[[PermissionGate], dict[HookEvent, list[HookMatcher]]]) -> Iterator[None]:
    """Agents started meanwhile have these hooks, and the CLI allows Bash by itself."""
    arguments, own = launch.arguments, PermissionGate.hooks

    def allowing(*given: Any, **options: Any) -> tuple[str, ...]:
        return (*arguments(*given, **options), "--allowedTools=Bash")

    setattr(agent, "arguments", allowing)  # noqa: B010 - a name that the module only imports
    setattr(PermissionGate, "hooks", hooks)  # noqa: B010 - the point of this benchmark
    try:
        yield
    finally:
        setattr(agent, "arguments", arguments)  # noqa: B010 - as above
        setattr(PermissionGate, "hooks", own)  # noqa: B010 - as above


def prompt_for(calls: int) -> str:
    """A prompt for a turn that makes so many calls."""
    steps: list[dict[str, Any]] = [
        *({"tool": "Bash", "input": {"command": f"true {number}"}} for number in range(calls)),
        {"text": "done"},
    ]
    return prompt_with(steps)


async def turn(registry: Registry, session_id: str, calls: int) -> float:
    """Seconds for each call of a turn that makes so many."""
    began = time.perf_counter()
    await registry.prompt(ME, session_id, PromptRequest(prompt=prompt_for(calls)))
    await rest(registry, session_id)
    took = time.perf_counter() - began
    outcome = await registry.outcome(ME, session_id)
    assert (outcome.text, outcome.denials) == ("done", 0), outcome
    return took / calls


async def rest(registry: Registry, session_id: str) -> None:
    """Wait until the turn is over."""
    with anyio.fail_after(300):
        while (outcome := await registry.outcome(ME, session_id)).state.is_busy:
            await registry.wait_for_change(ME, [session_id], {session_id: outcome.cursor}, 5)


async def measure(runs: int, calls: int) -> int:
    """Print the medians; the exit code."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), upstream="scripted", warm=0, idle_s=3600, log_level="error")
        async with open_registry(settings) as registry:
            first = SpawnRequest(prompt=prompt_with([{"text": "ready"}]))
            hooked = await registry.spawn(ME, first)
            await rest(registry, hooked)
            with started_with(instant_hooks):
                instant = await registry.spawn(ME, first)
                await rest(registry, instant)
            with started_with(no_hooks):
                bare = await registry.spawn(ME, first)
                await rest(registry, bare)
            sessions = (hooked, instant, bare)
            samples: dict[str, list[float]] = {session: [] for session in sessions}
            for session in sessions:
                await turn(registry, session, 3)
            for number in range(runs):
                place = number % len(sessions)
                for session in (*sessions[place:], *sessions[:place]):
                    samples[session].append(await turn(registry, session, calls))
            decisions = await registry.decisions(ME, limit=100_000)
            assert {one.session_id for one in decisions} == {hooked}, "a session without our hook asked the host"
            own = statistics.median(one.latency_us for one in decisions)

    def added(session: str, to: str) -> float:
        return statistics.median(a - b for a, b in zip(samples[session], samples[to], strict=True)) * 1000

    ours, empty, without = (statistics.median(samples[session]) * 1000 for session in sessions)
    print(f"tool call: {without:.1f} ms without a hook, {empty:.1f} with one that allows at once, {ours:.1f} with ours")
    whole, any_hook, work = added(hooked, bare), added(instant, bare), added(hooked, instant)
    print(f"our hook adds {whole:.2f} ms (median of {runs} turns of {calls} calls; target {TARGET_MS:g} ms)", end="; ")
    print(f"any hook adds {any_hook:.2f} ms, ours {work:.2f} ms more; the decision itself takes {own:.0f} µs")
    return 0 if whole <= TARGET_MS else 1


async def turn_beside(client: ClaudeSDKClient, calls: int) -> float:
    """As :func:`turn`, of the SDK and the CLI alone."""
    began = time.perf_counter()
    await client.query(prompt_for(calls))
    async for message in client.receive_response():
        if isinstance(message, ResultMessage):
            assert message.result == "done", message
    return (time.perf_counter() - began) / calls


async def measure_beside(runs: int, calls: int) -> None:
    """Print what a hook adds to a call without this house."""
    listener = loopback_listener()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    samples: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as name:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            await tasks.start(serve_scripted, listener)
            clients = {
                hooked: await stack.enter_async_context(ClaudeSDKClient(beside(Path(name) / str(hooked), url, hooked)))
                for hooked in samples
            }
            for client in clients.values():
                await turn_beside(client, 3)
            for number in range(runs):
                for hooked in sorted(samples, reverse=bool(number % 2)):
                    samples[hooked].append(await turn_beside(clients[hooked], calls))
            await stack.aclose()
            tasks.cancel_scope.cancel()
    added = statistics.median(a - b for a, b in zip(samples[True], samples[False], strict=True)) * 1000
    print(
        f"SDK and CLI alone: {statistics.median(samples[False]) * 1000:.1f} ms without a hook; "
        f"one that allows at once adds {added:.2f} ms"
    )


def beside(home: Path, url: str, hooked: bool) -> ClaudeAgentOptions:
    """The options of a session without this house."""
    home.mkdir()
    hooks: dict[HookEvent, list[HookMatcher]] = {"PreToolUse": [HookMatcher(hooks=[allow_at_once], timeout=60.0)]}
    return ClaudeAgentOptions(
        cli_path=cli_path(Settings()),
        cwd=home,
        allowed_tools=["Bash"],
        setting_sources=[],
        hooks=hooks if hooked else None,
        env={
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home / "config"),
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "benchmark",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--calls", type=int, default=25)
    given = parser.parse_args()
    met = anyio.run(measure, given.runs, given.calls)
    anyio.run(measure_beside, given.runs, given.calls)
    sys.exit(met)


if __name__ == "__main__":
    main()
