"""Tests of the whole house on every kind of sandbox.

A test, or a whole module, marked ``providers`` runs once on each kind. On E2B it is slow unless the mark says
``providers(fast="e2b")``: the fast suite holds a core of them, ``make test-slow`` the rest.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import house
from tests.e2b_cloud.handle import E2BCloud

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
def sandbox_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The kind of this run; every house that the test opens has its sandboxes there."""
    kind: str = request.param
    if kind != "e2b":
        yield kind
        return
    cloud: E2BCloud = request.getfixturevalue("e2b_cloud")
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(house, "SANDBOX", settings_on(cloud))
    yield kind
    living, owned = set(cloud.living()), owned_below(tmp_path)
    cloud.reset()
    assert living <= owned, f"no session owns these sandboxes: {living - owned}"


def settings_on(cloud: E2BCloud) -> dict[str, Any]:
    """Settings of a house whose sandboxes are there."""
    plan = {} if cloud.live else {"e2b_concurrency": 1000, "e2b_creations_per_s": 1000}
    return {"sandbox": "e2b", "e2b_template": "claude", **plan}


def owned_below(directory: Path) -> set[str]:
    """The cloud's names of all sandboxes that sessions of the homes below a directory own."""
    owned: set[str] = set()
    for file in directory.rglob("rookery.db"):
        with sqlite3.connect(file) as database:
            rows = database.execute("SELECT sandbox FROM sessions WHERE sandbox IS NOT NULL").fetchall()
        owned |= {json.loads(row[0]).get("sandbox", "") for row in rows}
    return owned
