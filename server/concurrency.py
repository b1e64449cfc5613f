"""Structured concurrency: the one shape that anyio does not have ready."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """A task group for what runs beside a block of code.

    The tasks are cancelled when the block ends, however it ends, and an error of the block comes out as it is: a bare
    task group would wrap it in an exception group, and typed errors would get lost in it.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
