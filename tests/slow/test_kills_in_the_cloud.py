"""Servers killed at random points of real turns whose sandboxes are on E2B, where agents outlive them."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.crashes import Promises, crash_and_check, temporary_directory
from tests.e2b_cloud.handle import E2BCloud
from tests.providers import settings_on
from tests.workload import Ground

KILLS: Final = int(os.environ.get("ROOKERY_TEST_KILLS", "40"))


@pytest.mark.slow
@pytest.mark.e2b
async def test_servers_killed_over_agents_that_outlive_them_leave_only_the_truth(
    tmp_path: Path, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = os.environ.get("ROOKERY_TEST_SEED", str(random.randrange(10**9)))
    print(f"seed {seed}")
    for name, value in e2b_cloud.environment.items():
        monkeypatch.setenv(name, value)
    ground = Ground(settings_on(e2b_cloud), e2b_cloud.environment, longest_run_s=8.0, living=e2b_cloud.living)
    promises = Promises()
    with temporary_directory() as temporary:
        for number in range(KILLS):
            await crash_and_check(tmp_path / "home", temporary, promises, f"{seed}-{number}", ground=ground)
    e2b_cloud.reset()
