"""What a dead server left running in a sandbox ends with the next server's look at it."""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from server.sandboxes.bubblewrap import BubblewrapProvider
from tests.sandboxes import bundled_cli, gateway_socket, spec_for


async def test_a_process_that_outlived_its_server_is_ended_and_no_other(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with gateway_socket() as gateway:
        dead, living = (BubblewrapProvider(tmp_path, bundled_cli()) for _ in range(2))
        spec, other = spec_for(gateway), spec_for(gateway)
        left, kept = await dead.create(spec), await living.create(other)
        survivor, neighbour = [await one.start_agent(["/bin/sleep", "300"], {}) for one in (left, kept)]
        try:
            # The first provider plays the server that died without a word to its sandbox.
            again = await living.attach(left.reference, spec)
            await again.stop()
            with anyio.fail_after(10):
                await survivor.wait()
            assert neighbour.returncode is None
        finally:
            for one in (left, kept):
                await one.destroy()
    assert os.listdir(tmp_path / "sandboxes") == []
