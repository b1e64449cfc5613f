"""Run the double: prints one line of JSON with its addresses, and ends at the end of its input."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from tests.e2b_cloud.administration import administration
from tests.e2b_cloud.cloud import Cloud
from tests.e2b_cloud.control import control_plane
from tests.e2b_cloud.envd import data_plane

KEY = "e2b_" + "d0" * 20


def quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Errors of loops that matter go to stderr, one line each."""
    print(context.get("message"), context.get("exception"), file=sys.stderr)


async def serve(cli: Path | None) -> None:
    """Serve until the input ends."""
    asyncio.get_running_loop().set_exception_handler(quiet)
    cloud = Cloud([KEY, KEY.replace("d0", "d1")], cli)

    async def kill(identity: str) -> None:
        if identity in cloud.sandboxes:
            await cloud.kill(cloud.sandboxes[identity], "a fault killed it")

    apps: list[Any] = [
        cloud.faults.wrap("control", control_plane(cloud), kill),
        cloud.faults.wrap("envd", data_plane(cloud), kill),
        administration(cloud),
    ]
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in apps]
    servers = [
        uvicorn.Server(
            uvicorn.Config(app, log_level=logging.CRITICAL, lifespan="off", timeout_keep_alive=600, access_log=False)
        )
        for app in apps
    ]
    for server in servers:
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    tasks = [asyncio.create_task(server.serve([one])) for server, one in zip(servers, sockets, strict=True)]
    urls = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    names = ("api_url", "sandbox_url", "administration_url")
    print(json.dumps({**dict(zip(names, urls, strict=True)), "api_key": KEY}), flush=True)
    try:
        await asyncio.to_thread(sys.stdin.buffer.read)
    finally:
        await cloud.close()
        for server in servers:
            server.should_exit = server.force_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="tests.e2b_cloud", description=__doc__)
    parser.add_argument("--cli", type=Path, help="the agent's program, shown in the template `claude`")
    os.umask(0o022)
    asyncio.run(serve(parser.parse_args().cli))


if __name__ == "__main__":
    main()
