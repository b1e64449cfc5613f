"""The bubblewrap provider passes the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.sandboxes.bubblewrap import BubblewrapProvider
from tests.conformance.sandbox_suite import NewSpec, SandboxSuite
from tests.sandboxes import bundled_cli, gateway_socket, spec_for


class TestBubblewrap(SandboxSuite):
    """See the suite."""

    @pytest.fixture
    def provider(self, tmp_path: Path) -> BubblewrapProvider:
        """A provider in a home that no other uid can enter."""
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        return BubblewrapProvider(home, bundled_cli())

    @pytest.fixture
    def new_spec(self) -> Iterator[NewSpec]:
        """Specs with a socket in the gateway's place."""
        with gateway_socket() as gateway:
            yield lambda: spec_for(gateway)
