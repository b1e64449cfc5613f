"""How long `spawn_agent` takes against the bare CLI (`claude -p`), to the first model request and for a whole turn.

Both talk to the same scripted model on loopback and are run in turn, so that whatever else the machine does falls on
both. `spawn_agent` is called by a real MCP client over stdio. Targets (issues 2 and 3): cold, whole turn at most 1.25
times the bare CLI; warm, first request at most 0.35 times, whole turn at most 0.4 times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from starlette.types import ASGIApp, Receive, Scope, Send

from rookery.provider import cli_path
from server.concurrency import background_tasks
from server.gateway.listener import loopback_listener, serve_app
from server.gateway.scripted.answers import ScriptedModel
from server.gateway.scripted.app import ScriptedApp
from server.settings import Settings

PROMPT = 'say hello\nscenario: [{"text": "hello"}]'

Sample = tuple[float, float]
"""Seconds to the first model request, and to the end of the turn."""


class Stopwatch:
    """Passes requests on to the scripted model and remembers when those for messages came."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.asked: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/messages":
            self.asked.append(time.perf_counter())
        await self._app(scope, receive, send)

    async def time(self, work: Callable[[], Awaitable[Any]]) -> Sample:
        """Run a piece of work; its sample."""
        self.asked.clear()
        started = time.perf_counter()
        await work()
        ended = time.perf_counter()
        assert self.asked, "the model was not asked"
        return self.asked[0] - started, ended - started


async def bare(cli: Path, directory: Path, url: str) -> None:
    """One turn of the CLI as a person would run it."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "CLAUDE_CONFIG_DIR": str(directory / "config"),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "benchmark",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    done = await anyio.run_process([str(cli), "-p", PROMPT], env=environment, cwd=directory, check=True)
    assert b"hello" in done.stdout, done.stdout


async def measure(runs: int, warm: int, pause_s: float) -> None:
    """Take samples in turn and print medians and ratios."""
    stopwatch = Stopwatch(ScriptedApp(ScriptedModel(None)))
    listener = loopback_listener()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    cli = cli_path(Settings())
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with background_tasks() as tasks:
            await tasks.start(serve, stopwatch, listener)
            rookery = StdioServerParameters(
                command=str(Path(sys.executable).with_name("rookery")),
                args=["serve"],
                env={
                    "PATH": os.environ["PATH"],
                    "ROOKERY_HOME": str(directory / "home"),
                    "ROOKERY_WARM": str(warm),
                    "ROOKERY_LOG_LEVEL": "error",
                    "ANTHROPIC_BASE_URL": url,
                    "ANTHROPIC_API_KEY": "benchmark",
                },
            )
            async with Client(stdio_client(rookery)) as client:

                async def spawned() -> None:
                    answer = await client.call_tool("spawn_agent", {"prompt": PROMPT})
                    outcome = answer.structured_content
                    assert outcome is not None
                    assert outcome["text"] == "hello", outcome

                await bare(cli, directory, url)
                await spawned()
                samples: dict[str, list[Sample]] = {"bare": [], "spawn": []}
                for _ in range(runs):
                    samples["bare"].append(await stopwatch.time(lambda: bare(cli, directory, url)))
                    await anyio.sleep(pause_s)  # outside the timed part: the pool fills again
                    samples["spawn"].append(await stopwatch.time(spawned))
    report("warm" if warm else "cold", samples)


async def serve(app: ASGIApp, listener: Any, *, task_status: Any) -> None:
    await serve_app(app, listener, task_status=task_status)


def report(kind: str, samples: dict[str, list[Sample]]) -> None:
    """Print the medians of both and their ratios."""
    for index, what in enumerate(("first model request", "whole turn")):
        base = statistics.median(sample[index] for sample in samples["bare"])
        ours = statistics.median(sample[index] for sample in samples["spawn"])
        print(
            f"{kind} spawn_agent, {what}: {ours * 1000:.0f} ms; bare claude -p: {base * 1000:.0f} ms; "
            f"ratio {ours / base:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--pause", type=float, default=1.5, help="seconds for the pool to refill before each sample")
    parser.add_argument("--kind", choices=("cold", "warm", "both"), default="both")
    given = parser.parse_args()
    for kind, warm in (("cold", 0), ("warm", 1)):
        if given.kind in (kind, "both"):
            anyio.run(measure, given.runs, warm, given.pause if warm else 0.0)


if __name__ == "__main__":
    main()
