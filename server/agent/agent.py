"""One live agent: the SDK's client, its transport into the sandbox, and the grant that lets it reach the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import anyio
import structlog
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Message, SessionStore, SystemMessage

from server.agent.launch import LaunchOptions, arguments, environment, trace_variables
from server.agent.permissions import PermissionGate
from server.agent.transport import SandboxTransport
from server.sandboxes.base import (
    CONFIG_DIR,
    AgentProcess,
    LastingProcess,
    LastingSandbox,
    Outlet,
    Sandbox,
    StillProcess,
)
from server.telemetry.spans import span

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S: Final = 60.0
"""Longest start of an agent, sandbox included; measured 0.5 s on an idle machine."""

CONTROL_TIMEOUT_S: Final = 5.0
"""Longest wait for the CLI's answer to an interrupt or a stop."""


STREAM: Final = "stream"
"""Key of the keepsake: the name of the agent's output."""


class Agent:
    """A started CLI with its control channel. An async context manager: inside it the agent lives.

    Args:
        sandbox: where it runs.
        session_id: the conversation's id, which the CLI uses too.
        options: launch options.
        token: its token for the gateway.
        resume: whether to take a conversation up again.
        config_files: files of its clean configuration directory (the transcript, on ``resume``).
        transcript: where the SDK mirrors the transcript to; bound to this session.
        gate: decides on tool calls.
        mcp_servers: in-process MCP servers by name.
        outlet: its way to the network, when the launch options say that it has one.
        keepsake: what another host needs to take it over, with :data:`STREAM` in it; kept where agents outlive hosts.
        survivor: its process, which another host started.
        trust: makes the files by which it trusts that way, when the launch options say that connections are opened.

    Attributes:
        max_turns: most turns that the model may have in one of the agent's, as the CLI was told when it started; None:
            any number, or not known, as of one that was taken over.

    Raises (on entry):
        RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
        claude_agent_sdk.ClaudeSDKError: the CLI did not come up.
        TimeoutError: it took longer than ``CONNECT_TIMEOUT_S``.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        session_id: str,
        options: LaunchOptions,
        token: str,
        resume: bool,
        config_files: Mapping[str, bytes],
        transcript: SessionStore,
        gate: PermissionGate,
        mcp_servers: Mapping[str, Any] | None = None,
        outlet: Outlet | None = None,
        trust: Callable[[], Awaitable[Mapping[str, bytes]]] | None = None,
        keepsake: Mapping[str, Any] | None = None,
        survivor: LastingProcess | None = None,
    ) -> None:
        lasting = isinstance(sandbox, LastingSandbox)

        async def start() -> AgentProcess:
            trusted = {} if trust is None else await trust()
            lasts: dict[str, Any] = {"keepsake": keepsake} if lasting else {}
            return await sandbox.start_agent(
                arguments(options, session_id, resume=resume),
                {**environment(options, token), **trace_variables()},
                config_files={**config_files, **trusted},
                outlet=outlet,
                **lasts,
            )

        self.session_id = session_id
        self.max_turns = None if survivor is not None else options.max_turns
        self.stream = str((keepsake or {}).get(STREAM, "")) if lasting else ""
        """Names its output for good, where another host may take it over; else empty."""
        self._transport = SandboxTransport(start, session_id, stream=self.stream, survived=survivor)
        self._client = ClaudeSDKClient(
            ClaudeAgentOptions(
                can_use_tool=gate.can_use_tool,
                hooks=gate.hooks(),
                permission_mode="default",
                setting_sources=[],
                strict_mcp_config=True,
                verbatim_prompts=True,
                session_store=transcript,
                session_store_flush="eager",
                mcp_servers={
                    name: {"type": "sdk", "name": name, "instance": server}
                    for name, server in (mcp_servers or {}).items()
                },
                # The mirror finds the transcript by this path, as the CLI inside names it (DESIGN section 4).
                env={"CLAUDE_CONFIG_DIR": CONFIG_DIR},
            ),
            transport=self._transport,
        )

    async def __aenter__(self) -> Self:
        with span("agent start"), anyio.fail_after(CONNECT_TIMEOUT_S):
            await self._client.connect()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.disconnect()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._transport.is_ready()

    def position_of(self, message: Message) -> int | None:
        """Where in its output a message ended; None where that is not known, or nobody could take it over."""
        found = message.data if isinstance(message, SystemMessage) else None
        message_id = getattr(message, "uuid", None) if found is None else found.get("uuid")
        return self._transport.position_of(message_id)

    def settle(self, position: int) -> None:
        """Everything that it said up to a position is stored for good."""
        self._transport.settle(position)

    async def prompt(self, text: str, message_id: str, *, notice: str | None = None) -> None:
        """Send a prompt, verbatim.

        Args:
            text: the prompt.
            message_id: a fresh UUID, which the result names again.
            notice: what the agent must know before it reads the prompt; stands before it as a block of its own.
        """
        content: str | list[dict[str, str]] = text
        if notice is not None:
            reminder = f"<system-reminder>\n{notice}\n</system-reminder>"
            content = [{"type": "text", "text": reminder}, {"type": "text", "text": text}]

        async def messages() -> AsyncIterator[dict[str, Any]]:
            yield {
                "type": "user",
                "message": {"role": "user", "content": content},
                "parent_tool_use_id": None,
                "uuid": message_id,
            }

        await self._client.query(messages())

    def messages(self) -> AsyncIterator[Message]:
        """All that the agent says, for its whole life. Raises a ClaudeSDKError when it ends unexpectedly."""
        return self._client.receive_messages()

    async def interrupt(self) -> bool:
        """Ask the agent to stop its turn; whether it took the request in time. The turn's result still follows."""
        return await self._control(self._client.interrupt(), "interrupt")

    async def stop_task(self, task_id: str) -> bool:
        """Ask the agent to stop a background task; whether it took the request in time."""
        return await self._control(self._client.stop_task(task_id), "stop_task")

    async def hold(self) -> bool:
        """Stop its process between two turns, if nothing else runs in the sandbox; whether that is certain.

        Until :meth:`release` nothing there changes; and if it is ended meanwhile, nothing of it runs once more.
        """
        process = self._transport.process
        return isinstance(process, StillProcess) and await process.hold()

    def release(self) -> None:
        """Let its process go on."""
        process = self._transport.process
        if isinstance(process, StillProcess):
            process.release()

    async def kill(self) -> None:
        """End the process tree at once. ``messages`` then raises."""
        if (process := self._transport.process) is not None:
            await process.terminate()

    async def _control(self, request: Any, name: str) -> bool:
        try:
            with anyio.fail_after(CONTROL_TIMEOUT_S):
                await request
        except TimeoutError:
            return False
        except Exception as error:  # the SDK raises bare Exception for a refused control request
            log.info("control request failed", request=name, error=str(error)[:200])
            return False
        return True
