"""The ``rookery`` console script: the way to the commands, kept light for the one that clients start."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line.

    ``rookery serve`` without options is what MCP clients start, and they wait for its first answer: it is taken before
    the library of the command line is imported, which costs a twentieth of that time.
    """
    if sys.argv[1:] == ["serve"]:
        from rookery.serving.stdio import run_stdio

        run_stdio()
        return
    from rookery.commands import app

    app()
