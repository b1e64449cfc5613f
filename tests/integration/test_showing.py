"""What a client is shown over HTTP: what its token may call, in both eras; other calls are refused as ever."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import Tool

from server.callers import Scope
from tests.http import Site, serving_http
from tests.issuers import issuing
from tests.surface import ERAS, Era, error_of
from tests.tenants import token
from tools.toolsets import TOOLS, TOOLSETS

EVERY: Final = {tool.name for tools in TOOLSETS.values() for tool in tools}
ALL: Final = {tool.name for tool in TOOLS}
READS: Final = {tool.name for tool in TOOLS if tool.read_only}
HOLDERS: Final[dict[str, tuple[set[Scope], set[str], set[str]]]] = {
    "reader": ({Scope.READ}, READS, {"review"}),
    "starter": ({Scope.RUN}, ALL - READS - {"answer_approval"}, set()),
    "worker": ({Scope.READ, Scope.RUN}, ALL - {"answer_approval"}, {"delegate", "parallel", "review"}),
    "judge": ({Scope.APPROVE}, {"answer_approval"}, set()),
    "admin": ({Scope.ADMIN}, ALL, {"delegate", "parallel", "review"}),
}
"""Of each token its scopes, and the tools and prompts that its holder is shown."""


@dataclass(frozen=True)
class Place:
    """A server that asks who calls, with a token of each kind."""

    site: Site
    headers: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("home")
    headers = {name: anyio.run(token, home, name, scopes)[1] for name, (scopes, _, _) in HOLDERS.items()}
    with serving_http(home, ROOKERY_AUTH="true") as site:
        yield Place(site, headers)


@asynccontextmanager
async def client_of(site: Site, headers: dict[str, str], era: Era) -> AsyncIterator[Client]:
    with anyio.fail_after(60):
        async with (
            httpx2.AsyncClient(trust_env=False, headers=headers, timeout=30) as http,
            Client(streamable_http_client(site.url, http_client=http), mode=era) as client,
        ):
            yield client


def named(text: str) -> set[str]:
    return {name for name in EVERY if re.search(rf"\b{name}\b", text)}


def told(tools: list[Tool]) -> set[str]:
    return named(json.dumps([tool.model_dump(mode="json") for tool in tools]))


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("holder", HOLDERS)
async def test_a_client_is_shown_what_its_token_may_call(place: Place, holder: str, era: Era) -> None:
    _, tools, prompts = HOLDERS[holder]
    async with client_of(place.site, place.headers[holder], era) as client:
        shown = (await client.list_tools()).tools
        assert {tool.name for tool in shown} == tools
        assert [tool.name for tool in shown] == [tool.name for tool in TOOLS if tool.name in tools]
        assert told(shown) == tools
        assert {prompt.name for prompt in (await client.list_prompts()).prompts} == prompts
        assert named(client.instructions or "") <= tools
        assert "Rookery runs Claude agents" in (client.instructions or "")


@pytest.mark.parametrize("era", ERAS)
async def test_what_is_not_shown_is_refused_with_the_scope_that_it_needs(place: Place, era: Era) -> None:
    async with client_of(place.site, place.headers["reader"], era) as client:
        error = error_of(await client.call_tool("spawn_agent", {"prompt": "x"}))
        assert error["code"] == "policy_denied"
        assert "agents:run" in error["message"]
        with pytest.raises(MCPError, match=r"policy_denied: .*spawn_agent"):
            await client.get_prompt("delegate", {"task": "x"})
        session = {"session_id": "00000000-0000-4000-8000-000000000000"}
        assert (await client.get_prompt("review", session)).messages


@pytest.mark.parametrize("era", ERAS)
async def test_clients_side_by_side_are_each_shown_their_own(place: Place, era: Era) -> None:
    async with (
        client_of(place.site, place.headers["admin"], era) as admin,
        client_of(place.site, place.headers["reader"], era) as reader,
    ):
        for _ in range(2):
            assert {tool.name for tool in (await admin.list_tools()).tools} == ALL
            assert {tool.name for tool in (await reader.list_tools()).tools} == READS


async def test_a_list_is_kept_by_nobody_but_its_caller(place: Place) -> None:
    async with client_of(place.site, place.headers["reader"], "auto") as client:
        assert (await client.list_tools()).cache_scope == "private"
        assert (await client.list_prompts()).cache_scope == "private"


@pytest.mark.parametrize("era", ERAS)
async def test_toolsets_and_read_only_mode_narrow_further(tmp_path: Path, era: Era) -> None:
    _, worker = await token(tmp_path, "worker", {Scope.READ, Scope.RUN})
    options = {"ROOKERY_AUTH": "true", "ROOKERY_TOOLSETS": "sessions,approvals", "ROOKERY_READ_ONLY": "true"}
    with serving_http(tmp_path, **options) as site:
        async with client_of(site, worker, era) as client:
            shown = (await client.list_tools()).tools
            expected = {"wait_for_sessions", "get_session", "list_sessions", "list_approvals", "explain_policy"}
            assert {tool.name for tool in shown} == expected
            assert told(shown) == expected
            assert error_of(await client.call_tool("spawn_agent", {"prompt": "x"}))["code"] == "invalid_argument"


@pytest.mark.parametrize("era", ERAS)
async def test_scopes_of_an_issuers_token_count_the_same(tmp_path: Path, era: Era) -> None:
    with (
        issuing() as issuer,
        serving_http(
            tmp_path,
            ROOKERY_AUTH="true",
            ROOKERY_PUBLIC_URL="https://agents.example",
            ROOKERY_OAUTH_ISSUER=issuer.url,
        ) as site,
    ):
        reader = {"authorization": f"Bearer {issuer.token(scope='agents:read')}"}
        async with client_of(site, reader, era) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == READS
