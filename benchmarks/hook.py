"""What the permission hook adds to a tool call: three sessions in turn, in one run, that make the same calls of Bash.

All live in the same house: real CLI, real sandbox, real store, scripted model. One has no hook at all and the CLI's own
rule that allows Bash, so nothing asks the host. One has a hook that allows at once without looking: what it adds to a
call is the CLI's own price of a hook, whoever answers it, with the way to the host and back. The third has Rookery's;
what it adds beyond the second is ours. Target: the third adds at most 5 ms to a call of the first (issue 4).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from claude_agent_sdk import HookContext, HookInput, HookJSONOutput, HookMatcher
from claude_agent_sdk.types import HookEvent

from rookery.application import open_registry
from server.agent import agent, launch
from server.agent.permissions import PermissionGate
from server.gateway.scripted import prompt_with
from server.registry import Registry
from server.requests import PromptRequest, SpawnRequest
from server.settings import Settings

TARGET_MS: Final = 5.0
ME: Final = "local"


def instant_hooks(gate: PermissionGate) -> dict[HookEvent, list[HookMatcher]]:
    """A hook that allows without looking."""

    async def allow(hook_input: HookInput, tool_use_id: str | None, context: HookContext) -> HookJSONOutput:
        return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "allow"}}

    return {"PreToolUse": [HookMatcher(hooks=[allow], timeout=60.0, on_failure="block")]}


def no_hooks(gate: PermissionGate) -> dict[HookEvent, list[HookMatcher]]:
    """No hook."""
    return {}


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


async def turn(registry: Registry, session_id: str, calls: int) -> float:
    """Seconds for each call of a turn that makes so many."""
    steps: list[dict[str, Any]] = [
        *({"tool": "Bash", "input": {"command": f"true {number}"}} for number in range(calls)),
        {"text": "done"},
    ]
    began = time.perf_counter()
    await registry.prompt(ME, session_id, PromptRequest(prompt=prompt_with(steps)))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--calls", type=int, default=25)
    given = parser.parse_args()
    sys.exit(anyio.run(measure, given.runs, given.calls))


if __name__ == "__main__":
    main()
