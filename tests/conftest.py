"""Fixtures that several folders of tests use."""

from __future__ import annotations

from tests.e2b_cloud.fixture import e2b_cloud, e2b_double

__all__ = ["e2b_cloud", "e2b_double"]
