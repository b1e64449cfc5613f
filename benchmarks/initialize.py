"""How long Rookery takes to answer ``initialize``, against an MCP server that does nothing.

All are started cold in turn, so that whatever else the machine does falls on all. Targets: ``rookery serve`` at most
1.3 times, and ``rookery connect`` with the daemon up at most 0.25 times.
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
    """Measure and print medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    rookery = str(Path(sys.executable).with_name("rookery"))
    commands = {
        "empty mcp server": [sys.executable, "-c", EMPTY],
        "rookery serve": [rookery, "serve"],
        "rookery connect": [rookery, "connect"],
    }
    targets = {"rookery serve": 1.30, "rookery connect": 0.25}
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ROOKERY_HOME": home, "ROOKERY_UPSTREAM": "scripted"}
        for command in commands.values():
            seconds_to_initialize(command, environment)  # warms the file cache and the bytecode, starts the daemon
        time.sleep(3)  # the daemon has opened its store and has a warm agent
        for _ in range(runs):
            for name, command in commands.items():
                times[name].append(seconds_to_initialize(command, environment))
        subprocess.run([rookery, "daemon", "stop"], env=environment, check=True, stdout=subprocess.DEVNULL)
    empty = statistics.median(times["empty mcp server"])
    for name, values in times.items():
        median = statistics.median(values)
        target = f"  ratio {median / empty:5.2f}   (target: at most {targets[name]:.2f})" if name in targets else ""
        print(f"{name:<18}{median * 1000:7.0f} ms{target}")


if __name__ == "__main__":
    main()
