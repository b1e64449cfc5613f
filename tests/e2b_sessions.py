"""Sessions in E2B's cloud for tests: made, put to sleep, asked where they can go on from."""

from __future__ import annotations

import anyio

from server.models import Outcome
from server.registry import Registry
from tests.e2b_cloud.handle import E2BCloud
from tests.house import ME, PATIENCE_S, bash, run


async def asleep(registry: Registry, cloud: E2BCloud, session_id: str) -> None:
    """Wait until a session hibernates and its sandbox is paused."""
    with anyio.fail_after(PATIENCE_S):
        while (await registry.get(ME, session_id)).resident or state_of(cloud, session_id) != "paused":
            await anyio.sleep(0.1)


def state_of(cloud: E2BCloud, session_id: str) -> str | None:
    """``running`` or ``paused``; None where its sandbox is no more."""
    found = [one["state"] for one in cloud.sandboxes if session_id in one["metadata"].values()]
    return found[0] if found else None


async def made(registry: Registry) -> Outcome:
    """A session with files that were made by Bash."""
    work = "mkdir -p src; echo one > src/main; ln -s src/main link; for n in 1 2 3 4 5 6; do echo $n > f$n; done"
    outcome = await run(registry, [bash(work), {"text": "the word is marmalade"}])
    assert outcome.error is None, outcome.error
    return outcome


def named_point(outcome: Outcome) -> str:
    """The checkpoint that an error names."""
    assert outcome.error is not None
    return outcome.error.message.split('checkpoint_id="')[1].split('"')[0]
