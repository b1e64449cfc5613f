"""A whole Rookery for tests: real store, gateway, sandbox and CLI in a home of its own; only the model is scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio

from rookery.application import open_registry
from server.egress import EgressOptions
from server.gateway.scripted import prompt_with
from server.models import Event, EventKind, Outcome
from server.registry import Registry
from server.requests import PromptRequest, SpawnRequest
from server.settings import Settings

ME: Final = "local"
"""The principal of these tests."""

PATIENCE_S: Final = 60.0
"""Longest that a test waits for a session: far above what it takes, so that a slow machine fails nothing."""


SANDBOX: dict[str, Any] = {}
"""Settings of the kind of sandbox that a test runs on; see :mod:`tests.providers`."""


def settings_for(home: Path, **overrides: Any) -> Settings:
    """Settings that take nothing from the environment of the one who runs the tests."""
    # A turn that fails does so at once, where a test does not ask for more.
    given: dict[str, Any] = {"home": home, "upstream": "scripted", "warm": 0, "idle_s": 3600, "turn_retries": 0}
    return Settings(**{**given, **SANDBOX, **overrides})


@asynccontextmanager
async def open_house(home: Path, egress: EgressOptions | None = None, /, **overrides: Any) -> AsyncIterator[Registry]:
    """A registry that serves, and everything below it; ``egress`` says where names of the network lead."""
    async with open_registry(settings_for(home, **overrides), egress=egress) as registry:
        yield registry


async def spawn(registry: Registry, steps: Sequence[dict[str, Any]] | str, **request: Any) -> str:
    """Spawn an agent that plays steps, or that is given a plain prompt."""
    prompt = steps if isinstance(steps, str) else prompt_with(list(steps))
    return await registry.spawn(ME, SpawnRequest(prompt=prompt, **request))


async def say(registry: Registry, session_id: str, steps: Sequence[dict[str, Any]] | str, **request: Any) -> int:
    """Give a session its next prompt; the turn's number."""
    prompt = steps if isinstance(steps, str) else prompt_with(list(steps))
    return await registry.prompt(ME, session_id, PromptRequest(prompt=prompt, **request))


async def settled(registry: Registry, session_id: str) -> Outcome:
    """Wait until a session is no longer at work."""
    return await until(registry, session_id, lambda outcome: not outcome.state.is_busy)


async def until(registry: Registry, session_id: str, met: Any) -> Outcome:
    """Wait until an outcome is as wanted."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            outcome = await registry.outcome(ME, session_id)
            if met(outcome):
                return outcome
            await registry.wait_for_change(ME, [session_id], {session_id: outcome.cursor}, 5)


async def run(registry: Registry, steps: Sequence[dict[str, Any]] | str, **request: Any) -> Outcome:
    """Spawn and wait."""
    return await settled(registry, await spawn(registry, steps, **request))


async def go_on(registry: Registry, session_id: str, steps: Sequence[dict[str, Any]] | str, **request: Any) -> Outcome:
    """Continue and wait."""
    await say(registry, session_id, steps, **request)
    return await settled(registry, session_id)


async def seen(registry: Registry, session_id: str, kind: EventKind) -> Event:
    """Wait until the session has an event of a kind; the first."""
    with anyio.fail_after(PATIENCE_S):
        cursor = 0
        while True:
            page = await registry.transcript(ME, session_id, after=cursor, limit=500)
            for event in page.events:
                if event.kind is kind:
                    return event
            cursor = page.cursor
            if not page.more:
                await registry.wait_for_change(ME, [session_id], {session_id: cursor}, 5)


async def events(registry: Registry, session_id: str) -> list[Event]:
    """The whole log of a session."""
    page = await registry.transcript(ME, session_id, after=0, limit=500)
    assert not page.more
    return list(page.events)


def bash(command: str, **extra: Any) -> dict[str, Any]:
    """A step that runs a command in the sandbox."""
    return {"tool": "Bash", "input": {"command": command, **extra}}
