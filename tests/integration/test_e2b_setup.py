"""Setting E2B up: the template, the doctor, refusals to start, direct traffic."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rookery.commands import app
from rookery.provider import e2b_options
from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.layout import direct_environment
from server.settings import Settings
from tests.e2b_cloud.handle import E2BCloud

ACCOUNT = {"sandbox": "e2b", "e2b_api_key": "e2b_key"}


@pytest.mark.e2b
def test_the_template_is_built_once_and_then_found(
    e2b_cloud: E2BCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**e2b_cloud.environment, "ROOKERY_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    first = CliRunner().invoke(app, ["e2b", "build", "--name", "of-a-test"])
    assert first.exit_code == 0, first.output
    assert "Built of-a-test" in first.output
    assert "@anthropic-ai/claude-code@" in first.output
    again = CliRunner().invoke(app, ["e2b", "build", "--name", "of-a-test"])
    assert again.output == "The template of-a-test is up to date.\n"


def test_debugging_of_the_sdk_is_refused_for_it_makes_no_sandboxes() -> None:
    with pytest.raises(RookeryError) as caught:
        e2b_options(Settings(**ACCOUNT, e2b_debug=True))  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert "E2B_DEBUG" in caught.value.message


def test_e2b_without_a_key_is_refused_and_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(RookeryError) as caught:
        e2b_options(Settings(sandbox="e2b"))
    assert "E2B_API_KEY" in caught.value.message


def test_direct_traffic_needs_the_name_of_a_secret(tmp_path: Path) -> None:
    direct = {**ACCOUNT, "home": tmp_path, "e2b_traffic": "direct"}
    with pytest.raises(RookeryError) as caught:
        e2b_options(Settings(**direct))  # type: ignore[arg-type]
    assert "ROOKERY_E2B_SECRET" in caught.value.message
    assert e2b_options(Settings(**direct, e2b_secret="anthropic")).secret == "anthropic"  # type: ignore[arg-type]


def test_an_agent_with_direct_traffic_has_neither_the_gateway_nor_a_token() -> None:
    given = {"ANTHROPIC_UNIX_SOCKET": "/run/x", "ANTHROPIC_API_KEY": "token", "ANTHROPIC_BASE_URL": "http://gateway"}
    variables = direct_environment({**given, "TMPDIR": "/tmp"}, "api.example.com")
    assert "ANTHROPIC_UNIX_SOCKET" not in variables
    assert variables["ANTHROPIC_API_KEY"] == "placeholder"
    assert variables["ANTHROPIC_BASE_URL"] == "https://api.example.com"
    assert variables["TMPDIR"] == "/tmp"


def test_a_home_keeps_its_name_in_the_account(tmp_path: Path) -> None:
    names = {e2b_options(Settings(**ACCOUNT, home=tmp_path / home)).home_id for home in ("a", "a", "b")}  # type: ignore[arg-type]
    assert len(names) == 2
