"""``make conformance``: the MCP conformance suite, both releases of it, against this server.

The fixtures that the suite calls are on a server that is built, guarded and served as ``rookery serve --http`` is.
Node and the suite are installed by npm into a folder of their own that git ignores. Leaves with 1 if anything that
counts fails: a required scenario, or one of the tasks extension, which the suite itself does not count.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[3] / ".conformance"

NODE: Final = "node@22"
"""The suite dies on older ones at its import."""

RELEASES: Final = {
    "stable": ["@modelcontextprotocol/conformance@0.1.16", NODE],
    "alpha": ["@modelcontextprotocol/conformance@0.2.0-alpha.12"],
}

TASKS: Final = tuple(
    f"tasks-{name}"
    for name in (
        "lifecycle",
        "capability-negotiation",
        "wire-fields",
        "request-state-removal",
        "mrtr-input",
        "request-headers",
        "dispatch-and-envelope",
        "required-task-error",
        "mrtr-composition",
    )
)

RUNS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("stable", ()),
    ("alpha", ("--requirements", "2025-11-25")),
    ("alpha", ("--requirements", "2026-07-28")),
    *(("alpha", ("--scenario", name)) for name in TASKS),
)

SUITE_S: Final = 600
"""Longest that one run may take."""


def install() -> None:
    """Install node and both releases, unless they are there."""
    for release, packages in RELEASES.items():
        folder = FOLDER / release
        marker = folder / "installed"
        if marker.exists() and marker.read_text() == " ".join(packages):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        print(f"Installing {' and '.join(packages)}", flush=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *packages], cwd=folder, check=True
        )
        marker.write_text(" ".join(packages))


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """The server with the fixtures; its URL."""
    environment = {**os.environ, "ROOKERY_HOME": str(home), "ROOKERY_UPSTREAM": "scripted", "ROOKERY_WARM": "0"}
    command = [sys.executable, "-m", "tests.conformance.protocol.serve", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            if not url:
                raise SystemExit("The server did not start.")
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def run(release: str, options: tuple[str, ...], url: str) -> tuple[int, str]:
    """One run of the suite; its exit code and what it said."""
    node = FOLDER / "stable/node_modules/.bin/node"
    suite = FOLDER / release / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
    with tempfile.TemporaryDirectory() as results:
        done = subprocess.run(
            [node, suite, "server", "--url", url, *options],
            cwd=results,
            capture_output=True,
            text=True,
            timeout=SUITE_S,
            check=False,
        )
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    install()
    failed = 0
    with tempfile.TemporaryDirectory() as home, serving(Path(home) / "home") as url:
        for release, options in RUNS:
            code, said = run(release, options, url)
            name = f"{RELEASES[release][0].rpartition('@')[2]} {' '.join(options)}".strip()
            totals = re.findall(r"^(?:Total|Passed): .*$", said, re.MULTILINE)
            print(f"{'FAILED' if code else 'ok'}  {name}  {totals[-1] if totals else ''}", flush=True)
            if code != 0:
                failed += 1
                print(said[-6000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
