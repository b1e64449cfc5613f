"""What is published says the same everywhere: versions, names, variables, commands."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rookery.version import VERSION
from server.settings import Settings

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"


def loaded(name: str) -> dict[str, Any]:
    document = json.loads((PACKAGING / name).read_text())
    assert isinstance(document, dict)
    return document


def variables() -> set[str]:
    """All variables that the settings read."""
    return {str(field.validation_alias or f"ROOKERY_{name.upper()}") for name, field in Settings.model_fields.items()}


def test_the_versions_are_one() -> None:
    server, manifest = loaded("server.json"), loaded("manifest.json")
    assert {server["version"], manifest["version"], *(package["version"] for package in server["packages"])} == {
        VERSION
    }


def test_the_registry_can_prove_whose_package_it_is() -> None:
    name = loaded("server.json")["name"]
    assert f"mcp-name: {name} -->" in (ROOT / "README.md").read_text()
    assert f'io.modelcontextprotocol.server.name="{name}"' in (PACKAGING / "Dockerfile").read_text()
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", name)
    assert len(loaded("server.json")["description"]) <= 100, "the registry's bound"


def test_every_variable_that_is_published_is_a_setting() -> None:
    (package,) = loaded("server.json")["packages"]
    named = {variable["name"] for variable in package["environmentVariables"]}
    named |= loaded("manifest.json")["server"]["mcp_config"]["env"].keys()
    named |= set(re.findall(r"ROOKERY_[A-Z_]+", (PACKAGING / "Dockerfile").read_text()))
    named |= set(re.findall(r"ROOKERY_[A-Z_]+(?==)", (PACKAGING / "rookery.service").read_text()))
    assert named <= variables() | {"ROOKERY_"}


def test_secrets_are_published_as_such() -> None:
    (package,) = loaded("server.json")["packages"]
    assert [v["name"] for v in package["environmentVariables"] if v.get("isSecret")] == ["ANTHROPIC_API_KEY"]
    assert loaded("manifest.json")["user_config"]["api_key"]["sensitive"] is True


def test_the_bundle_starts_what_is_there_and_asks_for_all_that_it_uses() -> None:
    manifest = loaded("manifest.json")
    assert (ROOT / manifest["server"]["entry_point"]).is_file()
    command = manifest["server"]["mcp_config"]
    assert command["args"][-2:] == ["rookery", "connect"]
    asked = set(re.findall(r"\$\{user_config\.(\w+)\}", json.dumps(command)))
    assert asked == manifest["user_config"].keys()


def test_the_image_holds_every_package() -> None:
    text = (PACKAGING / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"COPY {package} /src/{package}" in text
    extras = re.search(r'"/src\[(.+?)\]"', text)
    assert extras is not None
    assert set(extras.group(1).split(",")) <= project["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("name", ["rookery.service", "Dockerfile"])
def test_a_server_is_started_by_a_command_that_there_is(name: str) -> None:
    text = (PACKAGING / name).read_text()
    assert re.search(r"serve(\", \"| )--http", text)


def test_every_guide_is_linked_and_every_link_leads_somewhere() -> None:
    guides = ROOT / "docs" / "clients"
    index = (guides / "README.md").read_text()
    assert {path.name for path in guides.glob("*.md")} - {"README.md"} <= set(re.findall(r"\((\S+?\.md)\)", index))
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:\s]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
