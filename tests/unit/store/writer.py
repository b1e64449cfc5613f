"""Another process on the store, run by tests: ``python -m tests.unit.store.writer URL WHAT SESSION [COUNT]``.

``append`` appends COUNT times three events. ``turns`` plays turns of the session till it is killed, a line for each.
``stall`` writes the half of a transaction, says so, and waits for its death. ``open`` opens the store and leaves.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from itertools import count

import anyio
from sqlalchemy import Connection

from server.clock import SYSTEM_CLOCK
from server.models import SessionState
from server.store import Store, open_store
from server.store.events import append
from tests.unit.store.records import a_request, a_turn, end_turn, some_text


async def main(url: str, what: str, session_id: str = "", number: str = "0") -> None:
    async with open_store(url) as store:
        match what:
            case "append":
                for _ in range(int(number)):
                    await store.append_events(session_id, 1, some_text(3))
            case "turns":
                await play(store, session_id)
            case "stall":
                await store._database.write(stall, session_id)


async def play(store: Store, session_id: str) -> None:
    for played in count():
        turn, _ = await store.begin_turn(session_id, a_turn(session_id))
        await store.append_events(session_id, turn.number, some_text(5))
        await store.record_request(a_request(f"{session_id}-{turn.number}", session_id, turn=turn.number))
        await end_turn(store, session_id, turn.number)
        await store.update_session(session_id, title=f"turn {turn.number}")
        say(f"played {played}")


def stall(connection: Connection, session_id: str) -> None:
    append(connection, session_id, 1, some_text(3), SYSTEM_CLOCK.now())
    connection.exec_driver_sql(f"UPDATE sessions SET state = '{SessionState.FAILED}'")
    say("stalled")
    threading.Event().wait()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    url, what, *rest = sys.argv[1:]
    anyio.run(partial(main, url, what, *rest))
