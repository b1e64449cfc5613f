"""A sandbox's life as E2B counts it: it runs while something needs it, and is paused when nothing does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskGroup

from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.channel import Destination
from server.sandboxes.e2b.cloud import Cloud
from server.sandboxes.e2b.hold import Hold
from server.sandboxes.e2b.options import E2BOptions
from server.sandboxes.e2b.plan import Plan

if TYPE_CHECKING:
    from e2b import AsyncSandbox

log = structlog.get_logger(__name__)

SWEEP_S: Final = 15.0
PAUSE_S: Final = 60.0

STOPPED_REST_S: Final = 3.0
"""How long a sandbox runs on after ``stop``: who stops an agent often looks at its files next."""

LOOK_S: Final = 1.0
"""How often a sandbox that may rest is looked at."""


class Residence:
    """Holds one sandbox from the first use on, and lets E2B pause it when nothing needs it.

    Args:
        tasks: where its background work lives.
        sandbox_id: E2B's name for it.
        doors: where connections from inside go.
        is_busy: whether something runs in it that must not be paused.
        fresh: the SDK's object of a sandbox that was just made, which has a place of the plan already.
    """

    def __init__(
        self,
        cloud: Cloud,
        plan: Plan,
        options: E2BOptions,
        tasks: TaskGroup,
        sandbox_id: str,
        doors: Mapping[str, Destination],
        is_busy: Callable[[], bool],
        fresh: AsyncSandbox | None = None,
    ) -> None:
        self.gone = False
        """Whether it was removed by this object."""
        self._cloud = cloud
        self._plan = plan
        self._options = options
        self._tasks = tasks
        self._id = sandbox_id
        self._doors = doors
        self._is_busy = is_busy
        self._fresh = fresh
        self._unswept = fresh is None
        self._hold: Hold | None = None
        self._gate = anyio.Lock()
        self._used = anyio.current_time()
        self._rest_s = options.rest_s

    @property
    def is_held(self) -> bool:
        """Whether it runs and is talked to at present."""
        return not self.gone and self._hold is not None and self._hold.channel.failure is None

    def touch(self) -> None:
        """It was used just now."""
        self._used = anyio.current_time()

    def spare(self) -> None:
        """What another host left running in it is not ended at the first use."""
        self._unswept = False

    async def stop(self) -> None:
        """End all its processes and keep its files; E2B pauses it soon after. Bounded, idempotent.

        One that is paused already is not woken: what is frozen in it is ended at its next start.
        """
        with anyio.CancelScope(shield=True):
            if self.gone or (self._hold is None and await self._is_paused()):
                return
            try:
                with anyio.move_on_after(SWEEP_S):
                    await self._sweep(await self.held())
            except RookeryError as error:
                if error.code is not ErrorCode.SANDBOX_LOST:
                    raise
                log.info("sandbox_gone_before_stop", sandbox=self._id)
            self._rest_s = min(STOPPED_REST_S, self._options.rest_s)
            self._used = anyio.current_time()

    async def _is_paused(self) -> bool:
        """Whether there is nothing to stop."""
        try:
            return await self._cloud.state(self._id) == "paused"
        except RookeryError as error:
            if error.code is ErrorCode.SANDBOX_LOST:
                return True
            raise

    async def _sweep(self, hold: Hold) -> None:
        self._unswept = False
        swept = await hold.channel.open("sweep")
        await swept.finish()

    async def destroy(self) -> None:
        """End it, with its files. Bounded, idempotent.

        Raises:
            RookeryError: ``sandbox_unavailable`` when E2B did not do so; the janitor tries again.
        """
        with anyio.CancelScope(shield=True):
            async with self._gate:
                self.gone = True
                await self._let_go()
                if self._fresh is not None:
                    # It has a place of the plan, and never got a hold that would give it back.
                    self._fresh = None
                    self._plan.give_place()
                await self._cloud.kill(self._id)

    async def rest(self) -> None:
        """Let go of it and have it paused, unless something runs in it. Bounded; failures are logged."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(PAUSE_S):
            async with self._gate:
                # Looked at again behind the gate: somebody may have come to use it meanwhile.
                if self._hold is None or self.gone or not self._may_rest(self._hold):
                    return
                await self._let_go()
                try:
                    await self._cloud.pause(self._id)
                except RookeryError as error:
                    # It pauses by itself when nobody extends its life.
                    log.warning("sandbox_not_paused", sandbox=self._id, error=str(error), detail=error.detail)

    def _may_rest(self, hold: Hold) -> bool:
        quiet = anyio.current_time() - max(self._used, hold.channel.active)
        return quiet >= self._rest_s and not self._is_busy()

    async def held(self) -> Hold:
        """Its hold; it is resumed where need be.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``, ``too_many_sessions``.
        """
        self._used = anyio.current_time()
        async with self._gate:
            if self.gone:
                raise RookeryError(ErrorCode.SANDBOX_LOST, "The sandbox was removed.")
            if self._hold is not None and self._hold.channel.failure is not None:
                await self._let_go()
            hold = self._hold
            if hold is None:
                hold = await self._take_hold()
            await hold.channel.ready()
            if self._unswept:
                await self._sweep(hold)
            self._used = anyio.current_time()
        return hold

    async def _take_hold(self) -> Hold:
        fresh, self._fresh = self._fresh, None
        if fresh is None:
            await self._plan.take_place()
        hold = Hold(self._cloud, self._id, self._options.timeout_s, self._doors, fresh)
        self._rest_s = self._options.rest_s
        self._hold = hold
        self._tasks.start_soon(self._keep, hold)
        try:
            await hold.channel.ready()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._let_go()
            raise
        return hold

    async def _keep(self, hold: Hold) -> None:
        """Run a hold, and look whether the sandbox may rest."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, hold)
                await hold.run()
                tasks.cancel_scope.cancel()
        finally:
            self._plan.give_place()

    async def _watch(self, hold: Hold) -> None:
        while True:
            await anyio.sleep(LOOK_S)
            if self._may_rest(hold):
                # It ends this very task, unless somebody comes in between.
                self._tasks.start_soon(self.rest)

    async def _let_go(self) -> None:
        if self._hold is not None:
            hold, self._hold = self._hold, None
            await hold.let_go()
