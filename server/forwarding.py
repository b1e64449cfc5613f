"""Commands for a session that another server process owns: written into its inbox table, answered there.

The owner looks into its inbox every :data:`POLL_S` seconds. A command that its owner did not take in time is carried
out by nobody: the sender says so and the caller may try again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import structlog

from server.errors import ErrorCode, RookeryError
from server.leases import Leases
from server.models import Command, Failure, SessionRecord
from server.services import Services
from server.telemetry.spans import carrier, continuing

log = structlog.get_logger(__name__)

POLL_S: Final = 0.2
ANSWER_TIMEOUT_S: Final = 60.0

TRACE: Final = "trace"
"""Where a command carries the trace that it belongs to, beside its arguments."""

Serve = Callable[[SessionRecord, str, dict[str, object]], Awaitable[dict[str, object]]]


class Forwarding:
    """Sends commands to other servers, and serves theirs.

    Args:
        serve: carries out a command for a session of this process.
    """

    def __init__(self, services: Services, leases: Leases, serve: Serve) -> None:
        self._services = services
        self._leases = leases
        self._serve = serve

    async def belongs_elsewhere(self, session: SessionRecord) -> bool:
        """Whether another living server process owns the session now."""
        if session.owner is None or session.owner == self._services.server_id:
            return False
        return await self._lives(session.owner)

    async def send(self, session: SessionRecord, kind: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        """Have the session's owner carry a command out; its result, None when the owner let the session go before.

        Raises:
            RookeryError: what the owner answered, or ``timeout``.
        """
        store = self._services.store
        command_id = await store.send_command(session.id, kind, {**payload, TRACE: carrier()})
        with anyio.move_on_after(ANSWER_TIMEOUT_S):
            # The other side is another process: nothing here could set an event.
            while (result := await store.command_result(command_id)) is None and await self._lives(session.owner):
                if not await self._is_held(session) and await store.withdraw_command(command_id):
                    return None
                await anyio.sleep(POLL_S)
            if result is not None:
                return _answered(result)
        if await store.withdraw_command(command_id):
            return None
        raise RookeryError(
            ErrorCode.TIMEOUT,
            "The server process that owns this session did not answer. Look at the session, then try again.",
            retryable=True,
        )

    async def _is_held(self, session: SessionRecord) -> bool:
        """Whether the session still has the owner that the command was sent to."""
        try:
            current = await self._services.store.session_for_server(session.id)
        except RookeryError as error:
            if error.code is not ErrorCode.SESSION_NOT_FOUND:
                raise
            return False
        return current.owner == session.owner

    async def _lives(self, server_id: str | None) -> bool:
        """Whether a server process lives."""
        servers = {server.id: server for server in await self._services.store.servers()}
        server = servers.get(server_id or "")
        return server is not None and self._leases.alive(server)

    async def serve(self) -> None:
        """Carry out what others ask, each command in a task of its own; until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    for command in await self._services.store.take_commands(self._services.server_id):
                        tasks.start_soon(self._answer, command)
                except RookeryError as error:
                    log.warning("inbox could not be read", error=str(error))
                await anyio.sleep(POLL_S)

    async def _answer(self, command: Command) -> None:
        try:
            session = await self._services.store.session_for_server(command.session_id)
            payload = dict(command.payload)
            trace = payload.pop(TRACE, None)
            with continuing(trace if isinstance(trace, dict) else None):
                result = await self._serve(session, command.kind, payload)
        except RookeryError as error:
            result = {"error": Failure.of(error).model_dump(mode="json")}
        except Exception:
            log.exception("forwarded command failed", kind=command.kind)
            failure = RookeryError(ErrorCode.INTERNAL, "The server that owns this session failed. Try again.")
            result = {"error": Failure.of(failure).model_dump(mode="json")}
        try:
            await self._services.store.finish_command(command.id, result)
        except RookeryError as error:
            log.warning("answer could not be written", error=str(error))


def _answered(result: dict[str, Any]) -> dict[str, Any]:
    """What the owner answered.

    Raises:
        RookeryError: its answer was an error.
    """
    if "error" in result:
        failure = Failure.model_validate(result["error"])
        raise RookeryError(failure.code, failure.message, retryable=failure.retryable)
    return result
