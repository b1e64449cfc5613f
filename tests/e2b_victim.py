"""A server on E2B that waits to be killed: what the crash tests of E2B kill.

``python -m tests.e2b_victim HOME SETTINGS [STEPS] [--allow-first]`` (the former two as JSON) opens a house. With steps
it spawns an agent that plays them, and prints its session's id once its first tool was called; without, it prints a
line once it serves. With ``--allow-first`` the agent has gone to sleep over questions by then, and one was answered.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import anyio

from server.models import EventKind, StopReason
from server.registry import Registry
from tests.house import ME, open_house, seen, spawn, until


async def work(home: Path, settings: dict[str, object], steps: list[dict[str, object]] | None, allow: bool) -> None:
    """Until somebody kills it."""
    async with open_house(home, **settings) as registry:
        if steps is None:
            print("serves", flush=True)
        else:
            session_id = await spawn(registry, steps)
            await seen(registry, session_id, EventKind.TOOL_CALL)
            if allow:
                await allow_first(registry, session_id)
            print(session_id, flush=True)
        await anyio.sleep_forever()


async def allow_first(registry: Registry, session_id: str) -> None:
    """Answer the first question of an agent that sleeps, which wakes it."""
    asleep = await until(registry, session_id, lambda now: now.stop_reason is StopReason.AWAITING_APPROVAL)
    await registry.answer_approval(ME, asleep.pending_approvals[0].approval_id, allow=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("steps", type=json.loads, nargs="?")
    parser.add_argument("--allow-first", action="store_true")
    given = parser.parse_args()
    anyio.run(work, given.home, given.settings, given.steps, given.allow_first)
