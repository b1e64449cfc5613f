"""What the permission hook adds to a tool call: sessions of three kinds, in one run, that make the same calls of Bash.

All live in the same house: real CLI, real sandbox, real store, scripted model. Some have no hook at all and the CLI's
own rule that allows Bash, so nothing asks the host. Some have a hook that allows at once without looking: what it adds
to a call is the price of any hook in this house. The others have Rookery's; what it adds beyond that is the decision.
Target: these add at most 5 ms to a call of the first (issue 4).

There are several sessions of each kind, for two processes of the CLI that do the very same differ by several
milliseconds a call as long as they live (measured: 38.2 to 42.3 ms): of one each, that is what would be compared.

More sessions, beside the house, are the SDK and the CLI alone, without a hook and with one that allows at once: what
that one adds is the price of the CLI and the SDK, and what a hook costs in this house beyond it is the host's.
"""

from __future__ import annotations

import argparse
import random
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


async def measure(sessions: int, runs: int, calls: int) -> int:
    """Print the medians; the exit code."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), upstream="scripted", warm=0, idle_s=3600, log_level="error")
        async with open_registry(settings) as registry:

            async def ready() -> str:
                session = await registry.spawn(ME, SpawnRequest(prompt=prompt_with([{"text": "ready"}])))
                await rest(registry, session)
                await turn(registry, session, 3)
                return session

            hooked, instant, bare = Samples(), Samples(), Samples()
            for _ in range(sessions):
                hooked[await ready()] = []
                with started_with(instant_hooks):
                    instant[await ready()] = []
                with started_with(no_hooks):
                    bare[await ready()] = []
            for taken in in_random_order(runs, hooked, instant, bare):
                for session, samples in taken:
                    samples.append(await turn(registry, session, calls))
            decisions = await registry.decisions(ME, limit=1_000_000)
            assert {one.session_id for one in decisions} == set(hooked), "a session without our hook asked the host"
            own = statistics.median(one.latency_us for one in decisions)

    print(f"tool call: {told(bare)} without a hook, {told(instant)} with one that allows at once", end=", ")
    print(f"{told(hooked)} with ours")
    whole, any_hook = (median(one) - median(bare) for one in (hooked, instant))
    print(f"our hook adds {whole:.2f} ms ({sessions} sessions of {runs} turns; target {TARGET_MS:g} ms)", end="; ")
    print(f"any hook adds {any_hook:.2f} ms; the decision itself takes {own:.0f} µs")
    return 0 if whole <= TARGET_MS else 1


async def turn_beside(client: ClaudeSDKClient, calls: int) -> float:
    """As :func:`turn`, of the SDK and the CLI alone."""
    began = time.perf_counter()
    await client.query(prompt_for(calls))
    async for message in client.receive_response():
        if isinstance(message, ResultMessage):
            assert message.result == "done", message
    return (time.perf_counter() - began) / calls


async def measure_beside(sessions: int, runs: int, calls: int) -> None:
    """Print what a hook adds to a call without this house."""
    listener = loopback_listener()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as name:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            await tasks.start(serve_scripted, listener)
            clients: dict[str, ClaudeSDKClient] = {}
            for home in (Path(name) / f"{number}" for number in range(2 * sessions)):
                options = beside(home, url, hooked=int(home.name) < sessions)
                clients[home.name] = await stack.enter_async_context(ClaudeSDKClient(options))
                await turn_beside(clients[home.name], 3)
            hooked = Samples({name: [] for name in clients if int(name) < sessions})
            bare = Samples({name: [] for name in clients if name not in hooked})
            for taken in in_random_order(runs, hooked, bare):
                for name, samples in taken:
                    samples.append(await turn_beside(clients[name], calls))
            await stack.aclose()
            tasks.cancel_scope.cancel()
    added = median(hooked) - median(bare)
    print(f"SDK and CLI alone: {told(bare)} without a hook; one that allows at once adds {added:.2f} ms")


class Samples(dict[str, list[float]]):
    """Of each session of one kind, the seconds for a call in each of its turns."""


def in_random_order(runs: int, *kinds: Samples) -> Iterator[list[tuple[str, list[float]]]]:
    """All sessions of all kinds, in each round in another order."""
    every = [one for kind in kinds for one in kind.items()]
    for _ in range(runs):
        random.shuffle(every)
        yield every


def median(kind: Samples) -> float:
    """Milliseconds for a call, in the median of all turns of all its sessions."""
    return statistics.median(sample for samples in kind.values() for sample in samples) * 1000


def told(kind: Samples) -> str:
    """The median, and the least and the greatest of the sessions' own."""
    own = [statistics.median(samples) * 1000 for samples in kind.values()]
    return f"{median(kind):.1f} ms ({min(own):.1f} to {max(own):.1f})"


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
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--calls", type=int, default=20)
    given = parser.parse_args()
    met = anyio.run(measure, given.sessions, given.runs, given.calls)
    anyio.run(measure_beside, given.sessions, given.runs, given.calls)
    sys.exit(met)


if __name__ == "__main__":
    main()
