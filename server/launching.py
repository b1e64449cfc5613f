"""How a session's agent is brought up: its sandbox, its grant for the model, its launch options, its conversation."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import cast

from claude_agent_sdk import SessionStore

from policies import Policy
from server.agent.agent import Agent
from server.agent.launch import LaunchOptions, transcript_files
from server.agent.permissions import PermissionGate
from server.gateway import Grant
from server.models import SessionRecord
from server.sandboxes.base import Sandbox
from server.services import Services
from server.workspaces import fill

CONVERSATION = frozenset({"user", "assistant"})
"""Transcript entries that the CLI needs to find at least one of, to take a conversation up again."""


def launch_options(session: SessionRecord, policy: Policy, default_model: str | None) -> LaunchOptions:
    """What the session's agent is started with."""
    return LaunchOptions(
        tools=policy.offered_tools(session.tools),
        model=session.model or default_model,
        system_prompt=session.system_prompt,
        max_turns=session.max_turns,
        output_schema=None if session.output_schema is None else json.dumps(session.output_schema),
    )


class Launch:
    """One bringing-up of one session."""

    def __init__(self, services: Services, session: SessionRecord, policy: Policy) -> None:
        self._services = services
        self._session = session
        self._policy = policy

    async def sandbox(self) -> Sandbox:
        """The session's sandbox: found again, or made.

        Raises:
            RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
        """
        return await open_sandbox(self._services, self._session)

    def grant(self, stack: AsyncExitStack) -> Grant:
        """A token for the model gateway, revoked when the agent goes."""
        grant = self._services.gateway.open_grant()
        stack.callback(grant.revoke)
        session = self._session
        grant.bind(session_id=session.id, root_id=session.root_id, principal=session.principal)
        return grant

    async def agent(self, sandbox: Sandbox, grant: Grant, gate: PermissionGate) -> Agent:
        """The agent, not started yet, with the conversation that the store has."""
        session, store = self._session, self._services.store
        transcript = store.transcript_store(session.id)
        main = await store.transcript_prefix(session.id, cuts=session.transcript_cuts)
        resume = any(entry.get("type") in CONVERSATION for entry in main)
        files = {}
        if resume:
            subagents = await store.subagent_transcripts(session.id, cuts=session.transcript_cuts)
            files = transcript_files(session.id, main, subagents)
        options = launch_options(session, self._policy, self._services.settings.model)
        return Agent(
            sandbox=sandbox,
            session_id=session.id,
            options=options,
            token=grant.token,
            resume=resume,
            config_files=files,
            # The SDK asks at run time which of the store's optional methods there are.
            transcript=cast(SessionStore, transcript),
            gate=gate,
        )


async def open_sandbox(services: Services, session: SessionRecord) -> Sandbox:
    """The session's sandbox by its stored reference; a new one where there is none yet.

    Raises:
        RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
    """
    spec = services.sandbox_spec(session)
    if session.sandbox is not None:
        return await services.provider.attach(session.sandbox, spec)
    sandbox = await services.provider.create(spec)
    if session.workspace is not None:
        await fill(sandbox, session.workspace, services.settings)
    await services.store.update_session(session.id, sandbox=dict(sandbox.reference))
    return sandbox
