"""The warm pool: agents that were started before anybody asked for them.

Starting the CLI is most of the time that a spawn takes, and it can be done in advance: what is fixed at the start is
the launch options, not the prompt. Each agent of the pool has a sandbox and a session id of its own, is handed out
once, and never goes back. It has no session yet, so its gate denies everything and its grant is not bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from claude_agent_sdk import ClaudeSDKError

from server.agent.launch import LaunchOptions
from server.errors import RookeryError
from server.launching.agents import LiveAgent, prepare_fresh
from server.sandboxes.base import Sandbox, SandboxSpec
from server.services import Services
from server.settings import SandboxKind

log = structlog.get_logger(__name__)

MAX_AGE_S: Final = 900.0
"""An agent that waited longer is replaced."""

REFILL_DELAY_S: Final = 0.5
"""The pool lets a spawn have the machine for itself before it starts the next agent."""

RETRY_DELAY_S: Final = 30.0
"""How long the pool waits after a start that failed."""

LOOK_S: Final = 60.0
"""How often the pool looks for agents that are too old or dead."""


@dataclass
class _Waiting:
    options: LaunchOptions
    live: LiveAgent
    since: float


class WarmPool:
    """Keeps ``ROOKERY_WARM`` started agents for the launch options that were asked for last."""

    def __init__(self, services: Services) -> None:
        self._services = services
        e2b = services.providers.default.name == SandboxKind.E2B
        self._size = services.settings.e2b_warm if e2b else services.settings.warm
        self._waiting: deque[_Waiting] = deque()
        self.reserved: set[str] = set()
        """Ids of sandboxes that exist, or are being made, without a session in the store."""
        self._wanted: LaunchOptions | None = None
        self._changed = anyio.Event()
        self._delay = 0.0

    def want(self, options: LaunchOptions) -> None:
        """Keep agents for these options from now on."""
        if options != self._wanted:
            self._wanted = options
            self._wake(REFILL_DELAY_S)

    def take(self, options: LaunchOptions) -> LiveAgent | None:
        """A living agent that was started with just these options; the caller owns it. None when there is none."""
        self.want(options)
        for waiting in self._waiting:
            young = anyio.current_time() - waiting.since < MAX_AGE_S
            if waiting.options == options and young and waiting.live.agent.alive:
                self._waiting.remove(waiting)
                self._wake(REFILL_DELAY_S)
                return waiting.live
        return None

    def _wake(self, delay: float) -> None:
        self._delay = delay
        self._changed.set()

    async def serve(self) -> None:
        """Fill and renew the pool until cancelled; then end what waits in it."""
        if not self._size:
            return
        try:
            while True:
                self._changed = anyio.Event()
                await self._renew()
                if self._wanted is not None and len(self._waiting) < self._size:
                    await self._add(self._wanted)
                    continue
                with anyio.move_on_after(LOOK_S):
                    await self._changed.wait()
                await anyio.sleep(self._delay)
        finally:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as tasks:
                    while self._waiting:
                        tasks.start_soon(self.discard, self._waiting.popleft().live)

    async def _add(self, options: LaunchOptions) -> None:
        """Start one agent; a failure is logged and tried again later, for nobody waits for it."""
        try:
            async with self._starting(options) as live:
                self._waiting.append(_Waiting(options, live, anyio.current_time()))
        except (RookeryError, ClaudeSDKError, TimeoutError, OSError) as error:
            log.warning("warm agent did not start", error=str(error))
            await anyio.sleep(RETRY_DELAY_S)

    @asynccontextmanager
    async def _starting(self, options: LaunchOptions) -> AsyncIterator[LiveAgent]:
        """A started agent; when anything goes wrong nothing of it is left."""
        services = self._services
        session_id = services.clock.session_id()
        spec = SandboxSpec(
            session_id=session_id,
            gateway_socket=services.gateway.socket,
            limits=services.limits,
            labels={"server": services.server_id, "warm": "true"},
        )
        self.reserved.add(session_id)
        stack = AsyncExitStack()
        sandbox: Sandbox | None = None
        try:
            provider = services.providers.default
            sandbox = await provider.create(spec)
            live = prepare_fresh(services, session_id, sandbox, options, stack)
            async with services.starts.place(provider.capabilities):
                await stack.enter_async_context(live.agent)
            yield live
        except BaseException:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
                if sandbox is not None:
                    await sandbox.destroy()
            self.reserved.discard(session_id)
            raise

    async def _renew(self) -> None:
        """End agents that are dead, too old, or for options that nobody asks for any more."""
        now = anyio.current_time()
        for waiting in list(self._waiting):
            fits = waiting.options == self._wanted and now - waiting.since < MAX_AGE_S
            if not fits or not waiting.live.agent.alive:
                self._waiting.remove(waiting)
                await self.discard(waiting.live)

    async def discard(self, live: LiveAgent) -> None:
        """End an agent that no session has, and remove its sandbox. Bounded; failures are logged."""
        with anyio.CancelScope(shield=True):
            try:
                await live.closing.aclose()
                await live.sandbox.destroy()
            except (RookeryError, OSError) as error:
                log.warning("warm agent was not removed whole", error=str(error))
            self.reserved.discard(live.session_id)
