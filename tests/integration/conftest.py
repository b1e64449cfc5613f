"""What tests of the whole way share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http import Site, serving_http


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of :func:`site`."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def site(home: Path) -> Iterator[Site]:
    """One server over HTTP for all tests that only call it; they share its sessions."""
    with serving_http(home) as served:
        yield served
