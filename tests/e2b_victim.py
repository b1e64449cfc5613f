"""A server on E2B that waits to be killed: what the crash tests of E2B kill.

``python -m tests.e2b_victim HOME SETTINGS [STEPS]`` (the latter two as JSON) opens a house. With steps it spawns an
agent that plays them, and prints its session's id once its first tool was called; without, it prints a line once it
serves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio

from server.models import EventKind
from tests.house import open_house, seen, spawn


async def work(home: Path, settings: dict[str, object], steps: list[dict[str, object]] | None) -> None:
    """Until somebody kills it."""
    async with open_house(home, **settings) as registry:
        if steps is None:
            print("serves", flush=True)
        else:
            session_id = await spawn(registry, steps)
            await seen(registry, session_id, EventKind.TOOL_CALL)
            print(session_id, flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(work, Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
