"""How a session's agent is brought up: its sandbox, its grant for the model, its launch options, its conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

import anyio
from claude_agent_sdk import SessionStore

from policies import Policy
from server.agent.agent import STREAM, Agent
from server.agent.launch import LaunchOptions, transcript_files
from server.agent.permissions import PermissionGate
from server.delegation import SERVER, Delegation, may_delegate
from server.egress import EgressOutlet
from server.errors import RookeryError
from server.gateway import Grant
from server.hooks import PostToolUse
from server.models import NOT_COPIED, EventKind, SessionRecord
from server.permissions.put_off import PutOff, naming_last, owed, without_done
from server.policy_book import turns_of
from server.sandboxes.base import LastingProcess, LastingSandbox, Sandbox, SandboxProvider, SandboxSpec
from server.services import Services
from server.settings import Settings
from server.workspaces.filling import fill, not_copied
from server.workspaces.snapshots import named

PUT_OFF: Final = "put_off"
"""Key of the keepsake: what the agent was started to take up."""

STOP_TIMEOUT_S: Final = 20.0
"""Longest stop of a sandbox, which bounds itself; the janitor finds what is left."""

CONVERSATION: Final = frozenset({"user", "assistant"})
"""Transcript entries that the CLI needs to find at least one of, to take a conversation up again."""


def launch_options(session: SessionRecord, policy: Policy, settings: Settings) -> LaunchOptions:
    """What the session's agent is started with."""
    return LaunchOptions(
        tools=policy.offered_tools(session.tools),
        model=session.model or settings.model,
        system_prompt=session.system_prompt,
        max_turns=turns_of(policy.limits, session.max_turns),
        output_schema=None if session.output_schema is None else json.dumps(session.output_schema),
        mcp_servers=(SERVER,) if may_delegate(session, policy, max_depth=settings.max_depth) else (),
        network=bool(policy.network),
        intercept=policy.intercepts,
    )


@dataclass
class LiveAgent:
    """An agent with all that belongs to it: what an actor owns, or a warm pool until then.

    It is started by entering ``agent`` into ``closing``. Who takes it for a session sets its gate and grant up before
    that: an agent that takes a deferred call up again asks for it as soon as it runs.
    """

    session_id: str
    sandbox: Sandbox
    grant: Grant
    gate: PermissionGate
    outlet: EgressOutlet | None
    """Its way to the network; None where its launch options have none."""
    delegation: Delegation | None
    """Rookery's own tools in its hands; None where its policy gives it none."""
    agent: Agent
    closing: AsyncExitStack
    """Ends the agent, revokes its grant and stops its sandbox, in this order."""
    put_off: PutOff | None = None
    """What it takes up first, or took up when another server had started it; None where it waits for a prompt."""


@dataclass
class Survivor:
    """An agent that outlived the server that had started it."""

    live: LiveAgent
    told: bytes
    """What that server wrote to it since the last turn's end."""
    heard: int
    """How far its output is in the store already, in bytes from its start."""


def prepare_fresh(
    services: Services, session_id: str, sandbox: Sandbox, options: LaunchOptions, stack: AsyncExitStack
) -> LiveAgent:
    """An agent that has no conversation yet. It denies every tool call until its gate gets an authority.

    Args:
        session_id: the session that it is, or will be, for.
        sandbox: where it runs.
        options: what it is started with.
        stack: gets what ends it again.
    """
    return _prepare(services, session_id, sandbox, options, {}, stack, resume=False)


async def prepare_again(
    services: Services,
    session: SessionRecord,
    sandbox: Sandbox,
    options: LaunchOptions,
    stack: AsyncExitStack,
    put_off: PutOff | None = None,
) -> LiveAgent:
    """The agent of a session, with the conversation that the store has of it.

    Args:
        put_off: what it is to take up of what was put off.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    cuts = session.transcript_cuts
    main: Sequence[Mapping[str, Any]] = await services.store.transcript_prefix(session.id, cuts=cuts)
    if not any(entry.get("type") in CONVERSATION for entry in main):
        return prepare_fresh(services, session.id, sandbox, options, stack)
    main = without_done(main, {one.tool_use_id for one in await owed(services.store, session)})
    if put_off is not None:
        main = naming_last(main, put_off.call)
    files = transcript_files(session.id, main, await services.store.subagent_transcripts(session.id, cuts=cuts))
    return _prepare(services, session.id, sandbox, options, files, stack, resume=True, put_off=put_off)


async def take_over(services: Services, session: SessionRecord, options: LaunchOptions) -> Survivor | None:
    """The session's agent as a server that died left it at work; None where there is none that can be taken over.

    Raises:
        RookeryError: ``sandbox_lost``; ``sandbox_unavailable``: it may be there and cannot be reached now.
    """
    if not services.provider_of(session).capabilities.survives_host or session.sandbox is None:
        return None
    sandbox = await services.attach(session)
    if not isinstance(sandbox, LastingSandbox) or options.intercept or options.mcp_servers:
        # Who intercepts has keys of its own, which the agent's programs trust and which died with the server. So did
        # the conversation that the agent had with a server of ours in that process.
        return None
    known = await services.store.heard(session.id)
    heard, settled = known or (None, None)
    outlet = services.egress.open() if options.network else None
    stack = AsyncExitStack()
    try:
        process = await sandbox.resume_agent(outlet=outlet)
        if process is None or not _fits(services, process):
            return None
        kept = process.keepsake[STREAM]
        if settled is not None and settled.stream == kept and settled.position > process.position:
            # The turn before was stored, and the relay was not told any more.
            process = await sandbox.resume_agent(position=settled.position, outlet=outlet)
            if process is None:
                return None
        live = _prepare(services, session.id, sandbox, options, {}, stack, resume=True, survivor=process, outlet=outlet)
        outlet = None
    finally:
        if outlet is not None:
            outlet.close()
    return Survivor(live, process.told, heard.position if heard is not None and heard.stream == kept else 0)


def _fits(services: Services, process: LastingProcess) -> bool:
    """Whether a process runs, and was started with the hooks that this server has."""
    kept = process.keepsake
    if process.returncode is not None or not isinstance(kept, Mapping) or not kept.get("token"):
        return False
    return kept.get("after") == services.hooks.any_for(PostToolUse)


def _prepare(
    services: Services,
    session_id: str,
    sandbox: Sandbox,
    options: LaunchOptions,
    files: Mapping[str, bytes],
    stack: AsyncExitStack,
    *,
    resume: bool,
    put_off: PutOff | None = None,
    survivor: LastingProcess | None = None,
    outlet: EgressOutlet | None = None,
) -> LiveAgent:
    stack.push_async_callback(_stop_bounded, sandbox)
    after = services.hooks.any_for(PostToolUse)
    if survivor is None:
        grant = services.gateway.open_grant()
        keepsake: dict[str, Any] = {STREAM: services.clock.identifier("stream"), "token": grant.token, "after": after}
        if put_off is not None:
            keepsake[PUT_OFF] = asdict(put_off)
        outlet = services.egress.open() if options.network else None
    else:
        keepsake = {**survivor.keepsake}
        if PUT_OFF in keepsake:
            put_off = PutOff(**keepsake[PUT_OFF])
        grant = services.gateway.adopt_grant(str(keepsake["token"]))
    stack.callback(grant.revoke)
    if outlet is not None:
        stack.callback(outlet.close)
    gate = PermissionGate(hot_s=services.settings.approval_hot_s, after=after)
    delegation = services.delegate(gate.admissions) if SERVER in options.mcp_servers else None
    agent = Agent(
        sandbox=sandbox,
        session_id=session_id,
        options=options,
        token=grant.token,
        resume=resume,
        config_files=files,
        # The SDK asks at run time which of the store's optional methods there are.
        transcript=cast(SessionStore, services.store.transcript_store(session_id)),
        gate=gate,
        mcp_servers={} if delegation is None else {SERVER: delegation.server},
        outlet=outlet,
        trust=outlet.trust if outlet is not None and options.intercept else None,
        keepsake=keepsake,
        survivor=survivor,
    )
    return LiveAgent(session_id, sandbox, grant, gate, outlet, delegation, agent, stack, put_off)


async def _stop_bounded(sandbox: Sandbox) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(STOP_TIMEOUT_S):
        await sandbox.stop()


async def open_sandbox(services: Services, session: SessionRecord) -> Sandbox:
    """The session's sandbox by its stored reference; a new one where there is none yet.

    A sandbox without a stored reference is what a crash left of one that was being made and filled: it makes room.

    Raises:
        RookeryError: ``sandbox_unavailable``, ``sandbox_lost``.
    """
    if session.sandbox is not None:
        return await services.attach(session)
    spec, provider = services.sandbox_spec(session), services.provider_of(session)
    try:
        sandbox = await provider.create(spec)
    except RookeryError:
        if not await _remove_leftover(provider, spec):
            raise
        sandbox = await provider.create(spec)
    await adopt_sandbox(services, session, sandbox)
    return sandbox


async def _remove_leftover(provider: SandboxProvider, spec: SandboxSpec) -> bool:
    for reference in await provider.owned():
        if reference.get("id") == spec.session_id:
            leftover = await provider.attach(reference, spec)
            await leftover.destroy()
            return True
    return False


async def adopt_sandbox(services: Services, session: SessionRecord, sandbox: Sandbox) -> None:
    """Make a sandbox that was created in advance the session's own.

    Raises:
        RookeryError: ``storage_unavailable``, what filling the workspace raises.
    """
    changes: dict[str, object] = {}
    if session.workspace is not None:
        skipped = await fill(services, sandbox, session.workspace)
        if skipped:
            text = f"{len(skipped)} entries of the directory were not copied into the workspace: {named(skipped)}"
            await services.store.append_events(session.id, session.turn, [(EventKind.NOTICE, {"text": text})])
            changes["workspace"] = {**session.workspace, NOT_COPIED: not_copied(skipped).model_dump(mode="json")}
    reference = dict(sandbox.reference)
    if session.sandbox != reference:
        changes["sandbox"] = reference
    if changes:
        await services.store.update_session(session.id, **changes)
