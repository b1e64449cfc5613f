"""What the permission hook adds to a tool call: a session with it against one without, in turn, in one run.

Both sessions run the same calls of Bash in the same house: real CLI, real sandbox, real store, scripted model. The one
without has no hook at all and the CLI's own rule that allows Bash, so nothing asks the host. Target: at most 5 ms a
call (issue 4).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio

from rookery.application import open_registry
from server.agent import agent, launch
from server.agent.permissions import PermissionGate
from server.gateway.scripted import prompt_with
from server.registry import Registry
from server.requests import PromptRequest, SpawnRequest
from server.settings import Settings

TARGET_MS: Final = 5.0
ME: Final = "local"


@contextmanager
def no_hook() -> Iterator[None]:
    """Agents started meanwhile have no hook, and the CLI allows Bash by itself."""
    arguments, hooks = launch.arguments, PermissionGate.hooks

    def allowing(*given: Any, **options: Any) -> tuple[str, ...]:
        return (*arguments(*given, **options), "--allowedTools=Bash")

    setattr(agent, "arguments", allowing)  # noqa: B010 - a name that the module only imports
    PermissionGate.hooks = lambda self: {}  # type: ignore[method-assign]  # the point of this benchmark
    try:
        yield
    finally:
        setattr(agent, "arguments", arguments)  # noqa: B010 - as above
        PermissionGate.hooks = hooks  # type: ignore[method-assign]  # as above


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
            with no_hook():
                bare = await registry.spawn(ME, first)
                await rest(registry, bare)
            await turn(registry, hooked, 3)
            await turn(registry, bare, 3)
            samples: dict[str, list[float]] = {hooked: [], bare: []}
            for number in range(runs):
                for session in (hooked, bare) if number % 2 else (bare, hooked):
                    samples[session].append(await turn(registry, session, calls))
            decisions = await registry.decisions(ME, limit=100_000)
            assert {one.session_id for one in decisions} == {hooked}, "the session without a hook asked the host"
            own = statistics.median(one.latency_us for one in decisions)
    with_hook, without = (statistics.median(samples[session]) * 1000 for session in (hooked, bare))
    added = statistics.median(a - b for a, b in zip(samples[hooked], samples[bare], strict=True)) * 1000
    print(f"tool call with hook {with_hook:.1f} ms, without {without:.1f} ms; the hook adds {added:.2f} ms", end="; ")
    print(f"the decision itself {own:.0f} µs (median of {runs} turns of {calls} calls; target {TARGET_MS:g} ms)")
    return 0 if added <= TARGET_MS else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--calls", type=int, default=25)
    given = parser.parse_args()
    sys.exit(anyio.run(measure, given.runs, given.calls))


if __name__ == "__main__":
    main()
