"""Clients hear when sessions change, in both eras, and of nobody else's sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourcesListChanged, ResourceUpdated, ServerEvent
from mcp_types import (
    PromptReference,
    ResourceListChangedNotification,
    ResourceTemplateReference,
    ResourceUpdatedNotification,
    ServerNotification,
)

from server.callers import Caller, Scope
from server.registry import Registry
from tests.house import ME, open_house, run, say, settled
from tests.surface import ERAS, Era, ReadyBackend
from tools import subscriptions
from tools.addresses import SESSION, TRANSCRIPT
from tools.server import build_server

ANSWER = [{"text": "hello"}]

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "PAUSE_S", 0.05)
    monkeypatch.setattr(subscriptions, "POLL_S", 0.1)


class Heard:
    """What a client was told of changes, in the words of the newer era."""

    def __init__(self) -> None:
        self.events: list[ServerEvent] = []

    async def __call__(self, message: ServerNotification | Any) -> None:
        match message:
            case ResourceUpdatedNotification():
                self.events.append(ResourceUpdated(uri=str(message.params.uri)))
            case ResourceListChangedNotification():
                self.events.append(ResourcesListChanged())

    async def until(self, event: ServerEvent) -> None:
        with anyio.fail_after(60):
            while event not in self.events:
                await anyio.sleep(0.02)


@asynccontextmanager
async def listening(
    registry: Registry, era: Era, *addresses: str, principal: str = ME
) -> AsyncIterator[tuple[Client, Heard]]:
    """A client that subscribed to addresses and to the list."""
    heard = Heard()
    server = build_server(ReadyBackend(registry), caller=Caller(principal))
    async with Client(server, mode=era, message_handler=heard) as client:
        resources = client.server_capabilities.resources
        assert resources is not None
        assert (resources.subscribe, resources.list_changed) == (True, True)
        if era == "legacy":
            for address in addresses:
                await client.subscribe_resource(address)
            yield client, heard
            return

        async def follow() -> None:
            async for event in stream:
                heard.events.append(event)

        async with (
            client.listen(resources_list_changed=True, resource_subscriptions=addresses) as stream,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(follow)
            yield client, heard
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_hears_of_its_sessions_and_of_nobody_elses(tmp_path: Path, era: Era) -> None:
    """Rows P07 and T04: another principal's subscription to the same address stays silent."""
    async with open_house(tmp_path) as registry:
        session_id = (await run(registry, ANSWER)).session_id
        address = SESSION.format(session_id=session_id)
        transcript = TRANSCRIPT.removesuffix("{?after}").format(session_id=session_id)
        async with (
            listening(registry, era, address, transcript) as (client, heard),
            listening(registry, era, address, principal="somebody else") as (_, foreign),
        ):
            await say(registry, session_id, ANSWER)
            await heard.until(ResourceUpdated(uri=address))
            await heard.until(ResourceUpdated(uri=transcript))
            await settled(registry, session_id)
            other = (await run(registry, ANSWER)).session_id
            await heard.until(ResourcesListChanged())
            listed = {str(resource.uri) for resource in (await client.list_resources()).resources}
            assert listed == {address, SESSION.format(session_id=other)}
            assert ResourceUpdated(uri=SESSION.format(session_id=other)) not in heard.events
            assert foreign.events == []


@pytest.mark.slow
async def test_one_who_unsubscribes_hears_no_more_and_one_cannot_subscribe_without_end(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        first, second = [(await run(registry, ANSWER)).session_id for _ in range(2)]
        addresses = [SESSION.format(session_id=one) for one in (first, second)]
        async with listening(registry, "legacy", *addresses) as (client, heard):
            await client.unsubscribe_resource(addresses[0])
            for session_id in (first, second):
                await say(registry, session_id, ANSWER)
            await heard.until(ResourceUpdated(uri=addresses[1]))
            assert ResourceUpdated(uri=addresses[0]) not in heard.events
            with pytest.raises(MCPError, match="invalid_argument"):
                for number in range(subscriptions.MAX_ADDRESSES + 1):
                    await client.subscribe_resource(f"rookery://sessions/{number}")
            for session_id in (first, second):
                await settled(registry, session_id)


async def test_session_ids_and_policies_are_completed_for_their_principal(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = (await run(registry, ANSWER, title="Count the words")).session_id
        template = ResourceTemplateReference(type="ref/resource", uri=SESSION)
        prompt = PromptReference(type="ref/prompt", name="delegate")

        async def completed(client: Client, ref: Any, name: str, value: str) -> list[str]:
            return (await client.complete(ref, {"name": name, "value": value})).completion.values

        for era in ERAS:
            async with Client(build_server(ReadyBackend(registry)), mode=era) as client:
                assert client.server_capabilities.completions is not None
                for typed in ("", session_id[:5], "COUNT"):
                    assert await completed(client, template, "session_id", typed) == [session_id]
                assert await completed(client, template, "session_id", "zz") == []
                assert await completed(client, prompt, "policy", "re") == ["read-only"]
                assert "workspace" in await completed(client, prompt, "policy", "")
                assert await completed(client, prompt, "task", "x") == []
            stranger = build_server(ReadyBackend(registry), caller=Caller("somebody else"))
            async with Client(stranger, mode=era) as client:
                assert await completed(client, template, "session_id", session_id[:5]) == []


async def test_a_client_that_may_not_read_connects_without_a_fault_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(tmp_path) as registry:
        server = build_server(ReadyBackend(registry), caller=Caller(ME, frozenset({Scope.RUN})))
        async with Client(server, mode="legacy") as client:
            assert (await client.list_tools()).tools
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
