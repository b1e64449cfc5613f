"""How long ``rookery serve`` takes to answer ``initialize``, against an MCP server that does nothing.

Both are started cold in turn, so that whatever else the machine does falls on both. Target: at most 1.3 times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = "from mcp.server import MCPServer; MCPServer('empty').run()"

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "benchmark", "version": "1"},
    },
}


def seconds_to_initialize(command: list[str], environment: dict[str, str]) -> float:
    """From the start of the process to its answer."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        elapsed = time.perf_counter() - started
        assert "serverInfo" in answer["result"]
        process.stdin.close()
        process.wait(timeout=30)
    return elapsed


def main() -> None:
    """Measure and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    rookery = [str(Path(sys.executable).with_name("rookery")), "serve"]
    empty = [sys.executable, "-c", EMPTY]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ROOKERY_HOME": home, "ROOKERY_UPSTREAM": "scripted"}
        for command in (empty, rookery):
            seconds_to_initialize(command, environment)  # warms the file cache and the bytecode
        pairs = [
            (seconds_to_initialize(empty, environment), seconds_to_initialize(rookery, environment))
            for _ in range(runs)
        ]
    empty_s, rookery_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"empty mcp server   {empty_s * 1000:7.0f} ms")
    print(f"rookery serve      {rookery_s * 1000:7.0f} ms")
    print(f"ratio              {rookery_s / empty_s:7.2f}   (target: at most 1.30)")


if __name__ == "__main__":
    main()
