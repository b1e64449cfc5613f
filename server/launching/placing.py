"""Where a session's agent runs: the sandbox it gets, and the agent in it, warm or started now."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio

from policies import Policy
from server.errors import RookeryError
from server.launching.agents import LiveAgent, adopt_sandbox, launch_options, open_sandbox, prepare_again
from server.models import SessionRecord
from server.permissions.put_off import PutOff
from server.sandboxes.base import Sandbox
from server.services import Services
from server.telemetry.spans import span


class Placement:
    """Finds one actor its sandbox and its agent.

    Args:
        warm: an agent that was started in advance and is to become the session's.
        survivor: the session's agent, which outlived its server; it must be entered like one that is to be started.
    """

    def __init__(self, services: Services, warm: LiveAgent | None, survivor: LiveAgent | None = None) -> None:
        self._services = services
        self._warm = warm
        self._survivor = survivor
        self.settled = anyio.Event()
        """Set when the sandbox exists, or when that failed: then ``error`` says why."""
        self.error: RookeryError | None = None

    async def sandbox_of(self, session: SessionRecord) -> Sandbox:
        """The session's sandbox.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``, ``storage_unavailable``.
        """
        warm = self._warm is not None
        try:
            with span("sandbox open", rookery__sandbox=session.sandbox_kind, rookery__warm=warm):
                if self._warm is None:
                    return await open_sandbox(self._services, session)
                await adopt_sandbox(self._services, session, self._warm.sandbox)
                return self._warm.sandbox
        except RookeryError as error:
            self.error = error
            raise
        finally:
            self.settled.set()

    async def agent_of(
        self,
        session: SessionRecord,
        policy: Policy,
        sandbox: Sandbox,
        stack: AsyncExitStack,
        put_off: PutOff | None = None,
    ) -> LiveAgent:
        """The warm agent, if the session got one that lives; else one that is to be started.

        Args:
            stack: ends the agent when it closes.
            put_off: see :func:`server.launching.agents.prepare_again`.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        survivor, self._survivor = self._survivor, None
        if survivor is not None:
            await stack.enter_async_context(survivor.closing)
            return survivor
        warm, self._warm = self._warm, None
        if warm is not None:
            await stack.enter_async_context(warm.closing)
            if warm.agent.alive:
                return warm
        options = launch_options(session, policy, self._services.settings)
        return await prepare_again(self._services, session, sandbox, options, stack, put_off)

    async def close(self) -> None:
        """End a warm agent that nobody took over."""
        for left in (self._warm, self._survivor):
            if left is not None:
                await left.closing.aclose()
