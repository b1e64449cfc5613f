"""Tests of the whole house on every kind of sandbox.

A test, or a whole module, marked ``providers`` runs once on each kind. On E2B it is slow unless the mark says
``providers(fast="e2b")``: the fast suite holds a core of them, ``make test-slow`` the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import house

KINDS = ("bubblewrap", "e2b")


def parametrise(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once on each kind."""
    marks = list(metafunc.definition.iter_markers("providers"))
    if not marks:
        return
    fast = any(mark.kwargs.get("fast") == "e2b" for mark in marks)
    on_e2b = [pytest.mark.e2b, *([] if fast else [pytest.mark.slow])]
    metafunc.fixturenames.insert(0, "sandbox_kind")
    metafunc.parametrize(
        "sandbox_kind", ["bubblewrap", pytest.param("e2b", marks=on_e2b)], indirect=True, scope="function"
    )


@pytest.fixture
def sandbox_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kind of this run; every house that the test opens has its sandboxes there."""
    kind: str = request.param
    if kind == "e2b":
        cloud = request.getfixturevalue("e2b_cloud")
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)
        overrides: dict[str, Any] = {"sandbox": "e2b"}
        monkeypatch.setattr(house, "SANDBOX", overrides)
    yield kind
