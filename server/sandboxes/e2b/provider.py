"""The E2B provider: makes sandboxes in the cloud, finds them again, and tells which are ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup

from server.concurrency import background_tasks
from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import Capabilities, Check, SandboxSpec
from server.sandboxes.e2b.cloud import Cloud
from server.sandboxes.e2b.layout import AGENT_UID
from server.sandboxes.e2b.options import E2BOptions
from server.sandboxes.e2b.plan import Plan
from server.sandboxes.e2b.sandbox import KIND, E2BSandbox

REST_S: Final = 15.0
"""Longest pause of all sandboxes without an agent when the server stops; the others pause by themselves."""


class E2BProvider:
    """A :class:`~server.sandboxes.base.SandboxProvider` for one E2B account. Made by :func:`open_e2b`."""

    name = KIND

    def __init__(self, options: E2BOptions, tasks: TaskGroup) -> None:
        # Forks are made from checkpoints, as everywhere: E2B's own would copy a frozen agent with its half-open
        # requests and its token, and could only be made of the present.
        self.capabilities = Capabilities(pause=True, native_fork=False, survives_host=True, lasts_s=options.timeout_s)
        self._options = options
        self._tasks = tasks
        self._cloud = Cloud(options)
        self._plan = Plan(options.concurrency, options.creations_per_s, options.queue_s)
        self._sandboxes: WeakValueDictionary[str, E2BSandbox] = WeakValueDictionary()

    async def probe(self) -> list[Check]:
        """Say whether sandboxes can be made here, and what to do where not. Never raises."""
        from server.sandboxes.e2b.probe import probe

        return await probe(self._cloud, self._options)

    async def create(self, spec: SandboxSpec) -> E2BSandbox:
        """Make a new, empty sandbox.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``too_many_sessions``. Nothing is left behind then.
        """
        await self._plan.take_place()
        try:
            await self._plan.pace()
            box = await self._cloud.create(spec.session_id, spec.labels)
        except BaseException:
            self._plan.give_place()
            raise
        sandbox = self._made(spec, box.sandbox_id, box)
        try:
            await sandbox.come_up()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await sandbox.destroy()
            raise
        return sandbox

    async def attach(self, reference: Mapping[str, Any], spec: SandboxSpec) -> E2BSandbox:
        """Find a sandbox again by its stored reference; one that is paused stays so until it is used.

        Raises:
            RookeryError: ``sandbox_lost`` when it is gone; ``sandbox_unavailable``.
        """
        identity = reference.get("sandbox")
        if reference.get("kind") != KIND or reference.get("id") != spec.session_id or not isinstance(identity, str):
            raise RookeryError(ErrorCode.SANDBOX_LOST, "The reference belongs to another sandbox.")
        known = self._sandboxes.get(identity)
        if known is not None and known.is_held:
            return known
        await self._cloud.state(identity)
        return known if known is not None and known.alive else self._made(spec, identity)

    async def owned(self) -> list[Mapping[str, Any]]:
        """References of all sandboxes of this home in this account.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        return [
            {
                "kind": KIND,
                "id": found["session"],
                "sandbox": found["sandbox"],
                "uid": AGENT_UID,
                "server": found["server"],
            }
            for found in await self._cloud.list()
        ]

    def _made(self, spec: SandboxSpec, identity: str, fresh: Any = None) -> E2BSandbox:
        sandbox = E2BSandbox(self._cloud, self._plan, self._options, self._tasks, spec, identity, fresh)
        self._sandboxes[identity] = sandbox
        return sandbox

    async def close(self) -> None:
        """Have sandboxes paused in which nothing runs. Bounded."""
        with anyio.move_on_after(REST_S):
            async with anyio.create_task_group() as tasks:
                for sandbox in list(self._sandboxes.values()):
                    tasks.start_soon(sandbox.rest)


@asynccontextmanager
async def open_e2b(options: E2BOptions) -> AsyncIterator[E2BProvider]:
    """A provider, for as long as its server serves. Agents that run then live on for the next one."""
    async with background_tasks() as tasks:
        provider = E2BProvider(options, tasks)
        try:
            yield provider
        finally:
            with anyio.CancelScope(shield=True):
                await provider.close()
