"""Two hundred servers killed at random points of real turns (issue 3: zero orphans, zero lost outcomes)."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Final

import anyio
import pytest

from tests.crashes import Promises, crash_and_check, temporary_directory

KILLS: Final = int(os.environ.get("ROOKERY_TEST_KILLS", "200"))
HOMES: Final = 8
"""Each home is killed so often in a row: what one crash leaves, the next must bear."""


AT_ONCE: Final = 2


@pytest.mark.slow
async def test_killed_servers_leave_only_the_truth(tmp_path: Path) -> None:
    seed = os.environ.get("ROOKERY_TEST_SEED", str(random.randrange(10**9)))
    phases: Counter[str] = Counter()
    places = anyio.Semaphore(AT_ONCE)

    async def kill_in(home_number: int) -> None:
        home, promises = tmp_path / str(home_number) / "home", Promises()
        async with places:
            with temporary_directory() as temporary:
                for number in range(KILLS // HOMES):
                    killed = await crash_and_check(home, temporary, promises, f"{seed}-{home_number}-{number}")
                    phases[killed.split(": ")[1].rpartition(" (")[0]] += 1

    async with anyio.create_task_group() as tasks:
        for home_number in range(HOMES):
            tasks.start_soon(kill_in, home_number)
    print(f"seed {seed}: {sum(phases.values())} kills, {dict(phases)}")
    assert sum(phases.values()) == KILLS // HOMES * HOMES
