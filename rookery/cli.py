"""The ``rookery`` console script: the way to the commands, kept light for the one that clients start."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line.

    What MCP clients start, and wait for, is taken before the library of the command line is imported.
    """
    match sys.argv[1:]:
        case ["connect"]:
            from rookery.daemon.shim import run_connect

            run_connect()
        case ["serve"]:
            from rookery.configuration import load_settings, offering
            from rookery.serving.stdio import run_stdio

            run_stdio(offering(load_settings(), None, read_only=False))
        case ["daemon", "run"]:
            from rookery.daemon.server import run_daemon

            run_daemon()
        case _:
            from rookery.commands import app

            app()
