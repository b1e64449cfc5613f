"""``rookery install``: the entry gets in, and nothing that a person wrote gets lost."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import _bundled
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rookery.commands import app
from rookery.install.clients import Client, Reach, target_of
from rookery.install.document import Change, RefusedError, add
from tests.daemons import daemon_home

ENTRY = {"command": "/opt/rookery", "args": ["connect"]}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(
    document=st.dictionaries(st.text().filter(lambda key: key != "mcpServers"), JSON, max_size=5),
    servers=st.dictionaries(st.text().filter(lambda name: name != "rookery"), JSON, max_size=5),
    indent=st.sampled_from([None, 2, 4, "\t"]),
)
def test_whatever_else_the_file_holds_stays(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], servers: dict[str, Any], indent: Any
) -> None:
    path = tmp_path_factory.mktemp("client") / "mcp.json"
    before = {**document, "mcpServers": servers}
    written = json.dumps(before, indent=indent)
    path.write_text(written)
    assert add(path, "mcpServers", "rookery", ENTRY) is Change.ADDED
    after = json.loads(path.read_text())
    assert after["mcpServers"].pop("rookery") == ENTRY
    assert after == before
    assert list(after) == list(before)
    assert path.with_name("mcp.json.bak").read_text() == written
    assert add(path, "mcpServers", "rookery", ENTRY) is Change.UNCHANGED


@pytest.mark.parametrize(
    "content",
    [
        b'{\n  // my servers\n  "mcpServers": {}\n}',
        b'{"mcpServers": {},}',
        b'{"mcpServers": {}, "mcpServers": {"mine": {}}}',
        b'{"mcpServers": []}',
        b"[]",
        b'{"mcpServers": {"rookery": {"command": "another"}}}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
    ],
    ids=["comments", "trailing comma", "a member twice", "no object", "a list", "another entry", "UTF-16", "deep"],
)
def test_a_file_that_would_lose_something_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mcp.json"
    path.write_bytes(content)
    with pytest.raises(RefusedError):
        add(path, "mcpServers", "rookery", ENTRY)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["mcp.json"]


def test_another_entry_of_the_name_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"rookery": {"command": "another"}, "mine": {}}}')
    assert add(path, "mcpServers", "rookery", ENTRY, replace=True) is Change.REPLACED
    assert json.loads(path.read_text())["mcpServers"] == {"rookery": ENTRY, "mine": {}}


def test_a_byte_order_mark_a_mode_and_a_link_stay(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    real.write_bytes(b"\xef\xbb\xbf{}")
    real.chmod(0o640)
    link = tmp_path / "mcp.json"
    link.symlink_to(real)
    assert add(link, "servers", "rookery", ENTRY) is Change.ADDED
    assert link.is_symlink()
    assert real.read_bytes().startswith(b"\xef\xbb\xbf{\n")
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [None, b"", b"  \n"])
def test_a_file_that_is_missing_or_empty_is_made(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "deep" / "mcp.json"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    add(path, "servers", "rookery", ENTRY)
    assert json.loads(path.read_text()) == {"servers": {"rookery": ENTRY}}


@pytest.mark.parametrize("client", [Client.CLAUDE_DESKTOP, Client.VSCODE, Client.CURSOR])
def test_the_command_writes_an_entry_that_starts_this_rookery(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    arguments = ["install", client.value, "--env", "ROOKERY_MODEL=claude-sonnet-4-5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    target = target_of(client, Reach.USER, home=tmp_path, here=tmp_path)
    assert target is not None
    entry = json.loads(target.path.read_text())[target.key]["rookery"]
    assert entry["args"] == ["connect"]
    assert Path(entry["command"]).is_absolute()
    assert entry["env"] == {"ROOKERY_MODEL": "claude-sonnet-4-5"}
    assert "credential" in result.output
    assert "already" in CliRunner().invoke(app, arguments).output


def test_printing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["install", "cursor", "--print"])
    assert result.exit_code == 0
    assert '"mcpServers"' in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["claude-desktop", "--project"], ["cursor", "--env", "NOT A NAME=1"], ["emacs"]])
def test_what_cannot_be_is_a_usage_error(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CliRunner().invoke(app, ["install", *arguments]).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_claude_code_itself_takes_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real CLI, in a configuration directory of its own."""
    claude = Path(_bundled.__path__[0]) / "claude"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "claude").symlink_to(claude)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    home = tmp_path / "rookery"
    variables = [f"--env=ROOKERY_HOME={home}", "--env=ROOKERY_UPSTREAM=scripted"]
    result = CliRunner().invoke(app, ["install", "claude-code", *variables])
    assert result.exit_code == 0, result.output
    # Showing the entry starts what is behind it.
    with daemon_home(home):
        shown = subprocess.run(
            ["claude", "mcp", "get", "rookery"], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
    assert "connect" in shown.stdout
    assert "ROOKERY_UPSTREAM=scripted" in shown.stdout
    again = CliRunner().invoke(app, ["install", "claude-code"])
    assert again.exit_code == 1, "another entry is not overwritten"
    assert CliRunner().invoke(app, ["install", "claude-code", "--replace"]).exit_code == 0
