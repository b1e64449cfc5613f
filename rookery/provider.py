"""Which sandboxes this server makes, and the agent CLI that runs in them."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import Check, SandboxProvider
from server.sandboxes.providers import Providers
from server.settings import SandboxKind, Settings

if TYPE_CHECKING:
    from server.sandboxes.e2b import E2BOptions


@asynccontextmanager
async def open_providers(settings: Settings) -> AsyncIterator[Providers]:
    """The sandbox providers of one server, for as long as it serves: the local one, and E2B where there is a key.

    Raises:
        RookeryError: ``sandbox_unavailable``: the one that the settings name cannot be. Never falls back to another.
    """
    local = local_provider(settings)
    if not wants_e2b(settings):
        yield Providers(local)
        return
    from server.sandboxes.e2b import open_e2b

    async with open_e2b(e2b_options(settings)) as cloud:
        yield Providers(cloud, local) if settings.sandbox is SandboxKind.E2B else Providers(local, cloud)


def local_provider(settings: Settings) -> SandboxProvider:
    """The provider of this machine."""
    from server.sandboxes.bubblewrap import BubblewrapProvider

    return BubblewrapProvider(settings.home, cli_path(settings))


async def probe_providers(settings: Settings) -> list[Check]:
    """What the providers that are in use find. Never raises."""
    try:
        async with open_providers(settings) as providers:
            checks = await providers.default.probe()
            for provider in providers:
                if provider is not providers.default and provider.name == SandboxKind.E2B:
                    checks += await provider.probe()
            return checks
    except RookeryError as error:
        return [Check("sandbox", False, error.message)]


def wants_e2b(settings: Settings) -> bool:
    """Whether E2B is asked for, or at least offered."""
    return settings.sandbox is SandboxKind.E2B or settings.e2b_api_key is not None


def e2b_options(settings: Settings) -> E2BOptions:
    """The settings as the provider takes them.

    Raises:
        RookeryError: ``sandbox_unavailable``: E2B is asked for in a way that cannot be.
    """
    from server.sandboxes.e2b import E2BOptions, Traffic

    if settings.e2b_debug:
        raise RookeryError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            "E2B_DEBUG is set: the E2B SDK makes no sandboxes then and removes none. Unset it.",
        )
    if settings.e2b_api_key is None:
        raise RookeryError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            "ROOKERY_SANDBOX is e2b, and E2B_API_KEY is not set. Set it, or use bubblewrap.",
        )
    traffic = Traffic(settings.e2b_traffic)
    if traffic is Traffic.DIRECT and not settings.e2b_secret:
        raise RookeryError(
            ErrorCode.SANDBOX_UNAVAILABLE,
            "ROOKERY_E2B_TRAFFIC=direct needs the name of the E2B secret with the model API's key: ROOKERY_E2B_SECRET.",
        )
    return E2BOptions(
        api_key=settings.e2b_api_key.get_secret_value(),
        home_id=_home_id(settings.home),
        api_url=settings.e2b_api_url,
        sandbox_url=settings.e2b_sandbox_url,
        domain=settings.e2b_domain,
        template=settings.e2b_template,
        timeout_s=settings.e2b_timeout_s,
        concurrency=settings.e2b_concurrency,
        creations_per_s=settings.e2b_creations_per_s,
        rest_s=settings.e2b_rest_s,
        traffic=traffic,
        secret=settings.e2b_secret,
        model_host=urlsplit(settings.anthropic_base_url).hostname or "api.anthropic.com",
    )


def _home_id(home: Path) -> str:
    """What tells the sandboxes of this home from those of others in the same account; made once.

    Raises:
        RookeryError: ``storage_unavailable``.
    """
    path = home / "e2b-home"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = home / f".e2b-home-{secrets.token_hex(8)}"
        if not path.exists():
            fresh.write_text(secrets.token_hex(16), encoding="ascii")
            try:
                # Whichever of two servers comes first: both then read the same.
                os.link(fresh, path)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise RookeryError(
            ErrorCode.STORAGE_UNAVAILABLE, "The home directory cannot be written.", detail=str(error)
        ) from error


def cli_path(settings: Settings) -> Path:
    """The Claude Code CLI: the setting's, else the one that the SDK brings. It may not exist; the provider checks."""
    if settings.cli_path is not None:
        return settings.cli_path
    # Looked up without importing the SDK, which takes half a second.
    found = importlib.util.find_spec("claude_agent_sdk")
    if found is None or found.origin is None:
        return Path("claude")
    return Path(found.origin).parent / "_bundled" / "claude"
