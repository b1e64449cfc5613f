"""The official SDK, asked for what Rookery needs of it. All its exceptions come out as ours.

The SDK is imported at the first use, in a thread: that takes a second.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import structlog

from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.failures import translated
from server.sandboxes.e2b.options import E2BOptions, Traffic

if TYPE_CHECKING:
    from e2b import E2B, AsyncSandbox

log = structlog.get_logger(__name__)

HOME, SESSION, PRINCIPAL, SERVER = "rookery-home", "rookery-session", "rookery-principal", "rookery-server"
"""Keys of the metadata of our sandboxes."""

REQUEST_S: Final = 60.0
"""Longest single request."""

CLEAN_UP_S: Final = 20.0

MAX_CONNECTIONS: Final = "1000"
"""Connections per address: without TLS every stream of a sandbox is one (``E2B_MAX_CONNECTIONS``, read at import)."""


class Cloud:
    """One account."""

    def __init__(self, options: E2BOptions) -> None:
        self._options = options
        self._client: E2B | None = None
        self._loading = anyio.Lock()

    async def client(self) -> E2B:
        """The SDK, bound to the account.

        Raises:
            RookeryError: ``sandbox_unavailable``: it must not be used as things are.
        """
        async with self._loading:
            if self._client is None:
                if os.environ.get("E2B_DEBUG", "").lower() in ("1", "true"):
                    raise RookeryError(
                        ErrorCode.SANDBOX_UNAVAILABLE,
                        "E2B_DEBUG is set: the E2B SDK makes no sandboxes then and removes none. Unset it.",
                    )
                os.environ.setdefault("E2B_MAX_CONNECTIONS", MAX_CONNECTIONS)
                async with translated("load its SDK"):
                    self._client = await anyio.to_thread.run_sync(_bound, self._options)
            return self._client

    async def create(self, session_id: str, labels: Mapping[str, str]) -> AsyncSandbox:
        """Make a sandbox. Nothing is left behind when it fails.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        client, chosen = await self.client(), self._options
        metadata = {HOME: chosen.home_id, SESSION: session_id}
        for key, label in ((PRINCIPAL, "principal"), (SERVER, "server")):
            if label in labels:
                metadata[key] = labels[label]
        # The SDK itself repeats a request that failed on the way; the key makes them one.
        attempt = hashlib.sha256(f"{session_id} {secrets.token_hex(8)}".encode()).hexdigest()[:40]
        try:
            async with translated("create a sandbox", creating=True):
                return await client.AsyncSandbox.create(
                    chosen.template,
                    timeout=chosen.timeout_s,
                    metadata=metadata,
                    idempotency_key=f"rookery-{attempt}",
                    lifecycle={"on_timeout": "pause"},
                    network=self._network(),
                    request_timeout=REQUEST_S,
                )
        except BaseException:
            # It may have been made all the same, and its name lost.
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLEAN_UP_S):
                await self._remove_unnamed(session_id, attempt)
            raise

    def _network(self) -> Any:
        chosen = self._options
        network: dict[str, Any] = {"deny_out": lambda context: [context.all_traffic]}
        if chosen.traffic is Traffic.DIRECT:
            from e2b import Secret

            headers = {"x-api-key": Secret.fill(chosen.secret or "")}
            network["allow_out"] = [chosen.model_host]
            network["rules"] = {chosen.model_host: [{"transform": {"headers": headers}}]}
        return network

    async def _remove_unnamed(self, session_id: str, attempt: str) -> None:
        try:
            for found in await self.list({SESSION: session_id}):
                await self.kill(found["sandbox"])
        except RookeryError as error:
            log.warning("sandbox_may_be_left", session_id=session_id, attempt=attempt, error=str(error))

    async def connect(self, sandbox_id: str) -> AsyncSandbox:
        """A sandbox that exists; one that is paused goes on.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        client = await self.client()
        async with translated("resume the sandbox"):
            return await client.AsyncSandbox.connect(
                sandbox_id, timeout=self._options.timeout_s, request_timeout=REQUEST_S
            )

    async def state(self, sandbox_id: str) -> str:
        """``running`` or ``paused``.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        client = await self.client()
        async with translated("look at the sandbox"):
            information = await client.AsyncSandbox.get_info(sandbox_id, request_timeout=REQUEST_S)
        return str(getattr(information.state, "value", information.state))

    async def extend(self, sandbox_id: str, seconds: int) -> None:
        """Let a sandbox run for so long from now on.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        await self._by_id("extend the sandbox's life", lambda box: box.set_timeout(sandbox_id, seconds))

    async def pause(self, sandbox_id: str) -> None:
        """Pause a sandbox; one that is paused stays so.

        Raises:
            RookeryError: ``sandbox_lost``, ``sandbox_unavailable``.
        """
        await self._by_id("pause the sandbox", lambda box: box.pause(sandbox_id))

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox; one that is gone stays gone.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        try:
            await self._by_id("end the sandbox", lambda box: box.kill(sandbox_id))
        except RookeryError as error:
            if error.code is not ErrorCode.SANDBOX_LOST:
                raise

    async def _by_id(self, doing: str, ask: Callable[[Any], Awaitable[Any]]) -> None:
        client = await self.client()
        async with translated(doing):
            await ask(client.AsyncSandbox)

    async def list(self, metadata: Mapping[str, str] | None = None) -> list[dict[str, str]]:
        """Our sandboxes, running and paused: ``sandbox``, ``session``, ``server`` (who made it).

        Args:
            metadata: what theirs must hold besides this home's.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        client = await self.client()
        found: list[dict[str, str]] = []
        async with translated("list sandboxes"):
            from e2b import SandboxQuery

            query = SandboxQuery(metadata={HOME: self._options.home_id, **(metadata or {})})
            pages = client.AsyncSandbox.list(query=query, limit=100)
            while pages.has_next:
                for each in await pages.next_items():
                    known = each.metadata or {}
                    held = {"session": known.get(SESSION, ""), "server": known.get(SERVER, "")}
                    found.append({"sandbox": each.sandbox_id, **held})
        return found

    async def count_running(self) -> int:
        """How many sandboxes run in the account, ours and others.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        client = await self.client()
        count = 0
        async with translated("list sandboxes"):
            from e2b import SandboxQuery, SandboxState

            pages = client.AsyncSandbox.list(query=SandboxQuery(state=[SandboxState.RUNNING]), limit=100)
            while pages.has_next:
                count += len(await pages.next_items())
        return count

    async def template_exists(self, name: str) -> bool:
        """Whether the account can use a template.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        client = await self.client()
        async with translated("look for the template"):
            return bool(await client.AsyncTemplate.exists(name))

    async def secret_exists(self, name: str) -> bool:
        """Whether the account has a secret.

        Raises:
            RookeryError: ``sandbox_unavailable``.
        """
        client = await self.client()
        async with translated("look for the secret"):
            return bool(await client.AsyncSecret.exists(name))


def _bound(options: E2BOptions) -> E2B:
    from e2b import E2B

    parameters: dict[str, Any] = {"api_key": options.api_key}
    for name in ("api_url", "sandbox_url", "domain"):
        if getattr(options, name) is not None:
            parameters[name] = getattr(options, name)
    return E2B(**parameters)
