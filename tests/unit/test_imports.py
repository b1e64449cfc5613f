"""The house's arrows: who may import whom (DESIGN section 1), read from the source, also inside functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions, version
from pathlib import Path

import platformdirs
import pytest

from rookery.version import VERSION
from server.home import default_home, home_of
from server.settings import Settings

ROOT = Path(__file__).parents[2]

PACKAGES = ("policies", "server", "tools", "rookery")
"""From the ground up: each may import those before it, and itself."""

FLOORS = (
    {"settings", "errors", "clock"},
    {"models", "requests", "views", "sandboxes"},
    {"store"},
    {"gateway", "checkpoints", "egress"},
    {"agent"},
    {"session"},
    {"registry"},
)
"""Rooms of the server that have a fixed floor. The others stand above what they import, wherever that is; the desk of
approvals stands above the agent, whose questions it answers."""


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(module: str, path: Path) -> set[str]:
    """All modules that a source file names in an import; of ``from a import b`` both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def room(module: str) -> str | None:
    """The room of the server that a module belongs to: ``server.store.turns`` is of ``store``."""
    parts = module.split(".")
    if parts[0] != "server" or len(parts) < 2:
        return None
    name = parts[1]
    is_room = (ROOT / "server" / name).is_dir() or (ROOT / "server" / f"{name}.py").is_file()
    return name if is_room else None


def rooms_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, path in modules("server"):
        own = room(module)
        if own is not None:
            reached = {other for name in imported(module, path) if (other := room(name)) is not None}
            graph.setdefault(own, set()).update(reached - {own})
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages_never_run_upwards(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests", "benchmarks"}
    wrong = {
        f"{module} imports {name}"
        for module, path in modules(package)
        for name in imported(module, path)
        if name.split(".")[0] in above
    }
    assert not wrong


def test_rooms_of_the_server_import_each_other_in_one_direction_only() -> None:
    # Raises CycleError, which names the rooms of the circle.
    TopologicalSorter(rooms_graph()).prepare()


def test_rooms_of_the_server_never_reach_a_higher_floor_not_even_by_a_detour() -> None:
    graph = rooms_graph()
    reaches: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        reaches[name] = set(graph.get(name, ())).union(*(reaches[below] for below in graph.get(name, ())))
    wrong = {
        f"{name} reaches {higher}"
        for number, floor in enumerate(FLOORS)
        for name in floor & reaches.keys()
        for higher in reaches[name] & set().union(*FLOORS[number + 1 :])
    }
    assert not wrong


def test_no_dependency_ships_a_package_of_the_same_name_as_ours() -> None:
    owners = packages_distributions()
    clashes = {name: owners[name] for name in PACKAGES if set(owners.get(name, ["rookery"])) != {"rookery"}}
    assert not clashes


def test_the_imports_of_the_front_door_stay_light_until_a_client_has_its_answer() -> None:
    """What ``rookery serve`` imports before ``initialize`` is answered must not reach the slow libraries."""
    slow = {
        "sqlalchemy",
        "claude_agent_sdk",
        "alembic",
        "uvicorn",
        "genai_prices",
        "httpx2",
        "tree_sitter",
        "e2b",
        "structlog",
        "typer",
        "cryptography",
    }
    seen: set[str] = set()
    waiting = ["rookery.cli", "rookery.serving.stdio"]
    paths = {module: path for package in PACKAGES for module, path in modules(package)}
    while waiting:
        module = waiting.pop()
        if module in seen or module not in paths:
            continue
        seen.add(module)
        for node in ast.parse(paths[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting.extend(names)
            assert not slow & {name.split(".")[0] for name in names}, f"{module} imports {names}"
    assert "tools.server" in seen


def test_the_shim_that_clients_start_needs_the_standard_library_only() -> None:
    """Whatever ``rookery connect`` imports, itself or by a detour, is of Python or of that kind itself."""
    paths = {module: path for package in PACKAGES for module, path in modules(package)}
    seen: set[str] = set()
    waiting = ["rookery.cli", "rookery.daemon.shim"]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in paths:
            continue
        seen.add(module)
        for node in ast.parse(paths[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting.extend(names)
            foreign = {name.split(".")[0] for name in names} - set(PACKAGES) - sys.stdlib_module_names
            assert not foreign, f"{module} imports {foreign}"
    assert {"rookery.daemon.hello", "rookery.daemon.place", "server.home", "rookery.version"} <= seen


def test_the_default_home_is_the_users_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for named in ("", "/elsewhere/data"):
        monkeypatch.setenv("XDG_DATA_HOME", named)
        assert default_home() == platformdirs.user_data_path("rookery")
        assert home_of({}) == Settings(home=default_home()).home
    assert home_of({"rookery_home": "~/x"}) == Settings.model_validate({"home": "~/x"}).home


def test_the_version_is_the_packages() -> None:
    assert version("rookery") == VERSION
