"""What ``get_costs`` and ``list_sessions`` take with a thousand stored sessions (or --sessions), and an empty tool.

All three are tools of one server process, called in turn by the SDK's client over stdio. Target: medians of at most
twice the empty tool's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import anyio

SESSIONS: Final = 1_000
CALLS: Final = 200
TOOLS_MEASURED: Final[dict[str, dict[str, Any]]] = {"empty": {}, "get_costs": {}, "list_sessions": {}}


async def seed(home: Path, sessions: int) -> None:
    """Store sessions that have ended, each with two model requests."""
    from server.clock import SYSTEM_CLOCK
    from server.models import LedgerEntry, SessionRecord, SessionState, StopReason, TurnRecord, Usage
    from server.settings import Settings
    from server.store import open_store

    now = datetime.now(UTC)
    async with open_store(Settings(home=home).store_url) as store:
        for number in range(sessions):
            session_id = SYSTEM_CLOCK.session_id()
            session = SessionRecord(
                id=session_id,
                principal="local",
                root_id=session_id,
                title=f"Session {number}",
                labels={"team": f"team-{number % 10}"},
                state=SessionState.ENDED,
                turn=1,
                sandbox_kind="bubblewrap",
                created_at=now,
                updated_at=now,
                ended_at=now,
            )
            turn = TurnRecord(
                session_id=session_id,
                number=1,
                prompt="do it",
                stop_reason=StopReason.END_TURN,
                text="done",
                started_at=now,
                ended_at=now,
            )
            await store.create_session(session, turn)
            for _ in range(2):
                await store.record_request(
                    LedgerEntry(
                        id=SYSTEM_CLOCK.identifier("req"),
                        principal="local",
                        session_id=session_id,
                        root_id=session_id,
                        turn=1,
                        model=f"claude-model-{number % 4}",
                        status=200,
                        complete=True,
                        usage=Usage(input_tokens=100, output_tokens=10),
                        nano_usd=1_000_000,
                        started_at=now,
                        ended_at=now,
                    )
                )


def serve() -> None:
    """The server process: Rookery with one tool more, which does nothing."""
    from rookery.serving.stdio import serve_stdio
    from server.models import Record
    from server.requests import Request
    from server.settings import Settings
    from server.telemetry import configure_logging
    from tools.definition import Call, ToolDefinition
    from tools.toolsets import TOOLS

    class Nothing(Request):
        pass

    class Empty(Record):
        pass

    async def run(call: Call, arguments: Nothing) -> Empty:
        return Empty()

    empty = ToolDefinition(
        name="empty", title="Empty", run=run, arguments=Nothing, answer=Empty, render=lambda answer: "ok"
    )
    settings = Settings.load()
    configure_logging("warning")
    anyio.run(serve_stdio, settings, (*TOOLS, empty))


async def measure(home: Path, era: Any) -> dict[str, float]:
    """Median seconds of a call of each tool."""
    from mcp import Client, StdioServerParameters

    environment = {**os.environ, "ROOKERY_HOME": str(home), "ROOKERY_UPSTREAM": "scripted", "ROOKERY_WARM": "0"}
    server = StdioServerParameters(command=sys.executable, args=[__file__, "--serve"], env=environment)
    times: dict[str, list[float]] = {name: [] for name in TOOLS_MEASURED}
    async with Client(server, mode=era) as client:
        for round_number in range(CALLS + 5):
            for name, arguments in TOOLS_MEASURED.items():
                started = time.perf_counter()
                result = await client.call_tool(name, arguments)
                elapsed = time.perf_counter() - started
                assert not result.is_error
                if round_number >= 5:
                    times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Seed, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="how many are stored")
    chosen = parser.parse_args()
    if chosen.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        anyio.run(seed, home, chosen.sessions)
        for era in ("legacy", "auto"):
            medians = anyio.run(measure, home, era)
            for name, seconds in medians.items():
                ratio = seconds / medians["empty"]
                target = "" if name == "empty" else "   (target: at most 2.00)"
                print(f"{era:<7} {name:<14} {seconds * 1000:6.2f} ms   ratio {ratio:5.2f}{target}")


if __name__ == "__main__":
    main()
