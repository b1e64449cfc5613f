"""How long a server takes from its start to its first answer, with a thousand stored sessions against none.

Each sample is a process of its own, started after the one before was killed with SIGKILL; both homes in turn. The
stored sessions are idle and have a sandbox with files each. Target (issue 3): at most 1.3 times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import anyio

SESSIONS: Final = 1_000
TARGET: Final = 1.3


async def seed(home: Path, count: int) -> None:
    """Store idle sessions with their sandboxes."""
    from rookery.application import prepare_home
    from rookery.provider import local_provider
    from server.clock import SYSTEM_CLOCK
    from server.models import SessionRecord, SessionState, StopReason, TurnRecord
    from server.sandboxes.base import SandboxSpec
    from server.settings import Settings
    from server.store import open_store

    settings, now = Settings(home=home), SYSTEM_CLOCK.now()
    prepare_home(home)
    provider = local_provider(settings)
    async with open_store(settings.store_url) as store:
        for number in range(count):
            session_id = SYSTEM_CLOCK.session_id()
            sandbox = await provider.create(SandboxSpec(session_id=session_id, gateway_socket=home / "none"))
            assert sandbox.workspace is not None
            (sandbox.workspace / "file").write_text("content")
            session = SessionRecord(
                id=session_id,
                principal="local",
                root_id=session_id,
                title=f"Session {number}",
                state=SessionState.STARTING,
                turn=1,
                sandbox_kind="bubblewrap",
                sandbox=dict(sandbox.reference),
                created_at=now,
                updated_at=now,
            )
            turn = TurnRecord(session_id=session_id, number=1, prompt="do it", started_at=now)
            await store.create_session(session, turn)
            done = turn.model_copy(update={"stop_reason": StopReason.END_TURN, "text": "done", "ended_at": now})
            await store.move(session_id, SessionState.RUNNING)
            await store.end_turn(done, to=SessionState.IDLE)


async def answer(home: Path) -> None:
    """Open a registry, answer one call, say so, and wait to be killed."""
    from rookery.application import open_registry
    from server.requests import ListRequest
    from server.settings import Settings, UpstreamKind

    async with open_registry(Settings(home=home, upstream=UpstreamKind.SCRIPTED, warm=0)) as registry:
        await registry.list("local", ListRequest(limit=10))
        print("ready", flush=True)
        await anyio.sleep_forever()


def sample(home: Path) -> float:
    """Seconds from the start of a process to its first answer."""
    environment = {**os.environ, "ROOKERY_LOG_LEVEL": "error", "TMPDIR": str(home.parent)}
    started = time.perf_counter()
    command = [sys.executable, __file__, "--answer", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - started
        process.kill()
    assert line == b"ready\n", line
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer is not None:
        anyio.run(answer, given.answer)
        return
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        homes = {0: Path(name) / "none", given.sessions: Path(name) / "many"}
        for count, home in homes.items():
            anyio.run(seed, home, count)
            sample(home)
        samples: dict[int, list[float]] = {count: [] for count in homes}
        for _ in range(given.runs):
            for count, home in homes.items():
                samples[count].append(sample(home))
    without, stored = (statistics.median(taken) for taken in samples.values())
    print(
        f"restart to the first answer: {stored * 1000:.0f} ms with {given.sessions:,} stored sessions, "
        f"{without * 1000:.0f} ms with none; ratio {stored / without:.2f} (target {TARGET})"
    )


if __name__ == "__main__":
    main()
