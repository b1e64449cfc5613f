"""The conformance suite's fixtures stand on the product's own server; ``make conformance`` runs the suite itself."""

from __future__ import annotations

from mcp import Client

from tests.conformance.protocol.fixtures import add_fixtures, describe
from tests.conformance.protocol.jobs import add_jobs
from tests.surface import ERAS
from tests.tasking import TasksClient, begin, until
from tests.unit.tools.test_catalogue import FailedBackend
from tools.server import build_server
from tools.toolsets import TOOLS


async def test_fixtures_stand_beside_the_real_tools_and_tasks_come_from_both() -> None:
    server = build_server(FailedBackend())
    add_fixtures(server)
    add_jobs(server)
    describe(server)
    for era in ERAS:
        async with Client(server, mode=era) as client:
            listed = [tool.name for tool in (await client.list_tools()).tools]
            assert listed[: len(TOOLS)] == [tool.name for tool in TOOLS]
            assert {"test_simple_text", "slow_compute"} <= set(listed)
            assert not (await client.call_tool("test_simple_text", {})).is_error
    async with Client(server, extensions=[TasksClient()]) as client:
        created = await begin(client, "slow_compute", {"seconds": 0})
        assert (await until(client, created.task_id, "completed"))["result"]["content"][0]["text"] == "computed"


async def test_no_fixture_is_on_a_server_that_nobody_put_it_on() -> None:
    async with Client(build_server(FailedBackend())) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == [tool.name for tool in TOOLS]
