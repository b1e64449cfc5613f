"""``python -m tests.conformance.protocol.serve PORT``: the server as ``rookery serve --http`` has it, with fixtures."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

from rookery.serving import http
from rookery.serving.offering import server_for
from rookery.web.addresses import Address
from server.settings import Settings
from tests.conformance.protocol.fixtures import add_fixtures, describe
from tests.conformance.protocol.jobs import add_jobs
from tools.tool_server import ToolServer


def main() -> None:
    """Serve on the loopback until a signal comes."""

    def with_fixtures(*arguments: Any, **options: Any) -> ToolServer:
        server = server_for(*arguments, **options)
        add_fixtures(server)
        add_jobs(server)
        describe(server)
        return server

    address = Address.parse(f"127.0.0.1:{sys.argv[1]}")
    with patch.object(http, "server_for", with_fixtures):
        http.run_http(Settings.load(), address, announce=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
