"""Holding a sandbox: it runs, its life is extended, its relay is talked to. From its start or resume to its pause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.bundle import relay_bundle
from server.sandboxes.e2b.channel import Channel, Destination
from server.sandboxes.e2b.cloud import Cloud
from server.sandboxes.e2b.command_wire import CommandWire
from server.sandboxes.e2b.failures import translated
from server.sandboxes.e2b.layout import LACKS, RELAY, STAMP, UPLOAD, preparation

if TYPE_CHECKING:
    from e2b import AsyncSandbox

log = structlog.get_logger(__name__)

PREPARATION_S: Final = 60
"""Longest run of the script that prepares a sandbox; it takes well under a second."""

UPLOAD_S: Final = 60

HEARTBEATS: Final = 3
"""How often a sandbox's life is extended within the time that it would last."""


class Hold:
    """One sandbox that runs. Run it once, in a task group that outlives its user.

    Args:
        sandbox_id: E2B's name for it.
        timeout_s: how long it may run on after the last heartbeat.
        doors: where connections from inside go.
        fresh: the sandbox as it was just made; None: it must be connected to first.
    """

    def __init__(
        self,
        cloud: Cloud,
        sandbox_id: str,
        timeout_s: int,
        doors: Mapping[str, Destination],
        fresh: AsyncSandbox | None = None,
    ) -> None:
        self.channel = Channel(self._wire, doors)
        self.over = anyio.Event()
        """Set when it no longer runs."""
        self._cloud = cloud
        self._id = sandbox_id
        self._timeout_s = timeout_s
        self._fresh = fresh
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Hold it until :meth:`let_go`, or until it is lost. Never raises."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._extend)
                    await self.channel.run()
                    tasks.cancel_scope.cancel()
        finally:
            self.over.set()

    async def let_go(self) -> None:
        """Close the channel; the sandbox runs on, for as long as its life lasts."""
        self._scope.cancel()
        await self.over.wait()

    async def _extend(self) -> None:
        while True:
            await anyio.sleep(self._timeout_s / HEARTBEATS)
            try:
                await self._cloud.extend(self._id, self._timeout_s)
            except RookeryError as error:
                # At the end of the plan's longest life the sandbox is paused; the channel then resumes it.
                log.info("sandbox_life_not_extended", sandbox=self._id, error=str(error), detail=error.detail)

    async def _wire(self) -> CommandWire:
        box, self._fresh = self._fresh, None
        if box is None:
            box = await self._cloud.connect(self._id)
        await self._prepare(box)
        return await CommandWire.opened(box)

    async def _prepare(self, box: AsyncSandbox) -> None:
        """See that the relay runs.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
        """
        bundle = relay_bundle()
        script = preparation(bundle.build)
        if await _last_word(box, script) == UPLOAD:
            async with translated("upload the relay"):
                await box.files.write(RELAY, bundle.data, user="root", request_timeout=UPLOAD_S)
                await box.files.write(STAMP, bundle.build, user="root", request_timeout=UPLOAD_S)
            if await _last_word(box, script) == UPLOAD:
                raise RookeryError(
                    ErrorCode.SANDBOX_UNAVAILABLE, "The relay could not be put into the sandbox.", retryable=True
                )


async def _last_word(box: AsyncSandbox, script: str) -> str:
    """Run a script as root; the last word that it says.

    Raises:
        RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
    """
    from e2b import CommandExitException

    async with translated("prepare the sandbox"):
        try:
            result = await box.commands.run(script, user="root", timeout=PREPARATION_S)
        except CommandExitException as error:
            found = error.stderr.strip()
            lacks = f"The template has no {found}: " if error.exit_code == LACKS else "The template is of no use: "
            raise RookeryError(
                ErrorCode.SANDBOX_UNAVAILABLE,
                f"{lacks}run `rookery e2b build`, or set ROOKERY_E2B_TEMPLATE to one that has it.",
                detail=f"status {error.exit_code}: {error.stderr[-1000:]}",
                retryable=False,
            ) from error
    return result.stdout.split()[-1] if result.stdout.split() else ""
