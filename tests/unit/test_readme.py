"""What the README promises is there: every tool, setting, command and configuration that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.main import get_command

from rookery.commands import app
from server.settings import Settings
from tools.toolsets import TOOLS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_tool_has_its_row_and_no_other_is_named() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", README, re.MULTILINE)
    assert rows == [definition.name for definition in TOOLS]


def test_every_setting_has_its_row_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `ROOKERY_([A-Z0-9_]+)` \| (.*?) \|", README, re.MULTILINE))
    fields = {name.upper(): field for name, field in Settings.model_fields.items() if field.validation_alias is None}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        default = field.default
        if isinstance(default, int | float | str):
            assert rows[name] == f"`{getattr(default, 'value', default)}`", name
    for field in Settings.model_fields.values():
        assert field.validation_alias is None or f"`{field.validation_alias}`" in README


def test_every_command_it_shows_exists() -> None:
    command = get_command(app)
    known = set(getattr(command, "commands", {}))
    shown = set(re.findall(r"^(?:\.venv/bin/)?rookery ([a-z]+)", README, re.MULTILINE))
    assert shown
    assert shown <= known


def test_the_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_configuration_that_it_offers_is_json_and_starts_the_server() -> None:
    guides = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "clients").glob("*.md"))]
    found = (re.findall(r"```json\n(.*?)```", text, re.DOTALL) for text in (README, *guides))
    blocks = [json.loads(block) for inner in found for block in inner]
    blocks.append(json.loads((ROOT / "mcp.json").read_text(encoding="utf-8")))
    assert len(blocks) == 3
    for block in blocks:
        servers = block.get("mcpServers") or block["servers"]
        assert servers["rookery"]["args"] == ["connect"]
    assert blocks[-1]["mcpServers"]["rookery-http"]["url"] in README
