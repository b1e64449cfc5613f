"""Fixtures that several folders of tests use."""

from __future__ import annotations

import pytest

from tests.e2b_cloud.fixture import e2b_cloud, e2b_double
from tests.e2b_providers import e2b_provider, e2b_sandbox, e2b_spec
from tests.providers import parametrise, sandbox_kind

__all__ = ["e2b_cloud", "e2b_double", "e2b_provider", "e2b_sandbox", "e2b_spec", "sandbox_kind"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the whole house run on every kind of sandbox."""
    parametrise(metafunc)
