"""Tenants over HTTP: what is another's looks like what does not exist, and a credential does what it says, no more."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from server.callers import Scope
from server.gateway.scripted import prompt_with
from tests.house import bash
from tests.http import ACCEPT, PROTOCOL, Site, call, initialize, post, serving_http
from tests.tenants import revoke, token
from tools.toolsets import TOOLS

FOREIGN: Final[dict[str, dict[str, Any]]] = {
    "continue_session": {"prompt": "x"},
    "fork_session": {},
    "rewind_files": {"checkpoint_id": "$checkpoint"},
    "create_checkpoint": {},
    "wait_for_sessions": {},
    "get_session": {},
    "read_transcript": {},
    "interrupt_session": {},
    "end_session": {"delete": True},
    "get_costs": {},
    "list_files": {},
    "read_file": {"path": "secret"},
    "write_file": {"path": "x", "text": "x"},
    "diff_files": {},
    "export_changes": {},
    "list_approvals": {},
    "explain_policy": {"tool": "Bash", "input": {"command": "ls"}},
}
"""Every tool that takes a session, with what else it wants."""


@dataclass(frozen=True)
class Town:
    """A server with two tenants; Alice has a session whose agent wrote a file."""

    site: Site
    home: Path
    alice: dict[str, str]
    bob: dict[str, str]
    session: dict[str, Any]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    home = tmp_path_factory.mktemp("town")
    _, alice = anyio.run(token, home, "alice")
    _, bob = anyio.run(token, home, "bob")
    with serving_http(home, ROOKERY_AUTH="true", ROOKERY_PUBLIC_URL="https://agents.example") as site:
        prompt = prompt_with([bash("echo alices-canary > secret"), {"text": "alices-canary"}])
        session = call(site, "spawn_agent", {"prompt": prompt, "title": "alices-canary"}, **alice)
        assert session["stop_reason"] == "end_turn"
        yield Town(site, home, alice, bob, session)


def test_t01_ids_cannot_be_guessed(town: Town) -> None:
    """T01: at least 122 random bits."""
    assert uuid.UUID(town.session["session_id"]).version == 4


def test_t02_every_tool_that_takes_a_session_is_in_the_table() -> None:
    """T02: so that no new tool is forgotten."""
    takes = {
        definition.name
        for definition in TOOLS
        if {"session_id", "session_ids"} & set(definition.arguments.model_fields)
    }
    assert takes == set(FOREIGN)


@pytest.mark.parametrize("tool", sorted(FOREIGN))
def test_t03_a_foreign_session_and_a_missing_one_are_told_alike(town: Town, tool: str) -> None:
    """T02, T03: the same code and the same words, and nothing happened to the session."""
    answers = []
    for session_id in (town.session["session_id"], str(uuid.uuid4())):
        given = {
            name: town.session["checkpoint_id"] if value == "$checkpoint" else value
            for name, value in FOREIGN[tool].items()
        }
        which = {"session_ids": [session_id]} if tool == "wait_for_sessions" else {"session_id": session_id}
        answers.append(call(town.site, tool, {**given, **which}, **town.bob))
    assert answers[0] == answers[1]
    assert answers[0]["code"] == "session_not_found"
    view = call(town.site, "get_session", {"session_id": town.session["session_id"]}, **town.alice)
    assert (view["outcome"]["state"], view["outcome"]["turn"]) == ("idle", 1)


def test_t04_nothing_of_another_tenant_is_in_lists_sums_or_resources(town: Town) -> None:
    """T04: no foreign identifier, and no foreign word."""
    session_id = town.session["session_id"]
    assert call(town.site, "list_sessions", {}, **town.bob)["sessions"] == []
    assert call(town.site, "get_costs", {"group_by": "session"}, **town.bob)["groups"] == []
    assert call(town.site, "list_approvals", {}, **town.bob)["approvals"] == []
    assert [one["session_id"] for one in call(town.site, "list_sessions", {}, **town.alice)["sessions"]] == [session_id]
    seen = []
    for wanted in (session_id, str(uuid.uuid4())):
        for uri in ("transcript", "files/secret", "changes.patch"):
            answer = read_resource(town.site, f"rookery://sessions/{wanted}/{uri}", town.bob)
            assert "canary" not in answer.text
            seen.append((uri, answer.status_code, answer.text.replace(wanted, "ID")))
    assert seen[:3] == seen[3:]
    assert "canary" in read_resource(town.site, f"rookery://sessions/{session_id}/transcript", town.alice).text


def read_resource(site: Site, uri: str, credential: dict[str, str]) -> httpx2.Response:
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "resources/read",
        "params": {
            "uri": uri,
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": PROTOCOL,
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    }
    routing = {"mcp-protocol-version": PROTOCOL, "mcp-method": "resources/read", "mcp-name": uri}
    return post(site, message, **routing, **credential)


def test_t03_a_foreign_stream_is_refused_like_a_missing_one(town: Town) -> None:
    """T03, T04: the event stream, by both ways in; its own reader gets it."""
    session_id, missing = town.session["session_id"], str(uuid.uuid4())
    address = "/v1/sessions/{}/events"
    with httpx2.Client(trust_env=False, base_url=town.site.root) as client:
        answers = [client.get(address.format(one), headers=town.bob) for one in (session_id, missing)]
        assert {(answer.status_code, answer.text) for answer in answers} == {(404, answers[1].text)}
        assert client.get(address.format(session_id)).status_code == 401
        with client.stream("GET", address.format(session_id), headers=town.alice) as stream:
            assert next(stream.iter_lines()) == "id: 1"
    root = town.site.root.replace("http", "ws", 1)
    for credential, status in ((town.bob, 404), ({}, 401)):
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(root + address.format(session_id), proxy=None, additional_headers=credential),
        ):
            pass
        assert refused.value.response.status_code == status
    with connect(root + address.format(session_id), proxy=None, additional_headers=town.alice) as socket:
        assert json.loads(socket.recv(30))["seq"] == 1


def test_p07_an_mcp_session_of_another_credential_is_as_good_as_none(town: Town) -> None:
    """P07: also of another token of the same tenant."""
    opened = post(town.site, initialize(), **town.alice)
    mine = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    assert post(town.site, ask, **mine, **town.alice).status_code == 200
    taken = post(town.site, ask, **mine, **town.bob)
    missing = post(town.site, ask, **{**mine, "mcp-session-id": "0" * 32}, **town.bob)
    assert (taken.status_code, taken.text) == (missing.status_code, missing.text)
    assert taken.status_code == 404
    with httpx2.Client(trust_env=False) as client:
        for method in ("GET", "DELETE"):
            assert client.request(method, town.site.url, headers={**ACCEPT, **mine, **town.bob}).status_code == 404


def test_p08_answers_reach_the_one_who_asked_though_all_ids_collide(town: Town) -> None:
    """P08: both tenants ask with the same request id at the same time."""

    def titles(credential: dict[str, str]) -> list[str]:
        return [one["title"] for one in call(town.site, "list_sessions", {}, **credential)["sessions"]]

    with ThreadPoolExecutor(8) as clients:
        asked = [(name, clients.submit(titles, getattr(town, name))) for name in ("alice", "bob") * 20]
        for name, answer in asked:
            assert answer.result() == (["alices-canary"] if name == "alice" else []), name


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic rky_",
        "Bearer rky_" + "A" * 43,
        "Bearer " + "x" * 20_000,
        "Bearer eyJhbGciOiJub25lIn0.e30.",
    ],
)
def test_nobody_passes_without_a_credential_that_is_good(town: Town, shown: str) -> None:
    headers = {"authorization": shown} if shown else {}
    for path in ("/mcp", "/v1/sessions/x/events", "/nowhere"):
        with httpx2.Client(trust_env=False, base_url=town.site.root) as client:
            answer = client.post(path, json=initialize(), headers={**ACCEPT, **headers})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_t05_a_credential_is_for_us_alone_and_is_written_nowhere(town: Town) -> None:
    """T05: what a client shows reaches neither the model's upstream, nor the sandbox, nor the disk."""
    secret = town.alice["authorization"].split()[1]
    prompt = prompt_with([bash("env; cat /proc/self/environ; ls -la"), {"text": "seen"}])
    session = call(town.site, "spawn_agent", {"prompt": prompt}, **town.alice)
    assert secret not in str(call(town.site, "read_transcript", {"session_id": session["session_id"]}, **town.alice))
    call(town.site, "end_session", {"session_id": session["session_id"], "delete": True}, **town.alice)
    files = [path for path in town.home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name == "rookery.db" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]


async def test_a_scope_allows_what_it_says_and_no_more(town: Town) -> None:
    session_id = town.session["session_id"]
    _, reads = await token(town.home, "reader", [Scope.READ], principal="alice")
    _, runs = await token(town.home, "runner", [Scope.RUN], principal="alice")
    _, approves = await token(town.home, "approver", [Scope.APPROVE], principal="alice")
    _, rules = await token(town.home, "ruler", [Scope.ADMIN], principal="alice")
    asked = {
        "get_session": {"session_id": session_id},
        "interrupt_session": {"session_id": session_id},
        "answer_approval": {"approval_id": "apr_0", "decision": "allow"},
    }
    for credential, allowed in (
        (reads, {"get_session"}),
        (runs, {"interrupt_session"}),
        (approves, {"answer_approval"}),
        (rules, set(asked)),
    ):
        answers = {tool: call(town.site, tool, given, **credential).get("code") for tool, given in asked.items()}
        assert {tool for tool, code in answers.items() if code != "policy_denied"} == allowed
    resource = f"rookery://sessions/{session_id}/transcript"
    assert "canary" in read_resource(town.site, resource, reads).text
    assert "canary" not in read_resource(town.site, resource, runs).text


async def test_a_token_that_was_revoked_or_has_expired_is_useless_at_once(town: Town) -> None:
    made, good = await token(town.home, "short")
    assert post(town.site, initialize(), **good).status_code == 200
    await revoke(town.home, made)
    assert post(town.site, initialize(), **good).status_code == 401
    _, late = await token(town.home, "late", expires_in=timedelta(seconds=-1))
    assert post(town.site, initialize(), **late).status_code == 401


def test_supervisors_need_no_credential_and_learn_nothing(town: Town) -> None:
    with httpx2.Client(trust_env=False, base_url=town.site.root) as client:
        assert client.get("/healthz").text == "ok\n"
        assert client.get("/readyz").text == "ok\n"


async def test_t04_sums_over_all_tenants_are_for_the_operator_alone(town: Town) -> None:
    """T04: /metrics."""
    _, operator = await token(town.home, "operator", [Scope.ADMIN])
    with httpx2.Client(trust_env=False, base_url=town.site.root) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=town.alice).status_code == 403
        told = client.get("/metrics", headers=operator)
    assert told.status_code == 200
    assert "alice" not in told.text


def test_p06_the_public_name_is_one_that_the_server_answers_to(town: Town) -> None:
    """P06: with a public URL its host and origin pass, and no other."""
    for host, origin, status in (
        ("agents.example", "https://agents.example", 200),
        ("agents.example", "http://agents.example", 403),
        ("evil.example", "https://agents.example", 421),
    ):
        answer = post(town.site, initialize(), host=host, origin=origin, **town.alice)
        assert answer.status_code == status, (host, origin)


def test_a_token_is_made_listed_and_revoked_at_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rookery.commands import app

    runner = CliRunner(env={"ROOKERY_HOME": str(tmp_path), "ROOKERY_UPSTREAM": "scripted", "COLUMNS": "200"})
    made = runner.invoke(
        app, ["tokens", "create", "ci", "--scopes", "agents:read", "--expires", "30d", "--budget", "5"]
    )
    assert made.exit_code == 0, made.output
    (secret,) = re.findall(r"^rky_[A-Za-z0-9_-]{43}$", made.output, re.MULTILINE)
    (token_id,) = re.findall(r"tok_[0-9a-f]{32}", made.output)
    listed = runner.invoke(app, ["tokens", "list"]).output
    assert token_id in listed
    assert "agents:read" in listed
    assert secret not in listed
    assert runner.invoke(app, ["tokens", "revoke", token_id]).exit_code == 0
    assert "revoked" in runner.invoke(app, ["tokens", "list"]).output
    assert runner.invoke(app, ["tokens", "revoke", token_id]).exit_code == 1
    assert runner.invoke(app, ["tokens", "create", "x", "--scopes", "agents:fly"]).exit_code == 2
    for beyond in (["--budget", "inf"], ["--budget", "1e300"], ["--expires", "999999w"]):
        refused = runner.invoke(app, ["tokens", "create", "x", *beyond])
        assert refused.exit_code == 1
        assert "invalid_argument" in refused.output
    assert runner.invoke(app, ["tokens", "create", "oauth:someone"]).exit_code == 1


async def test_b03_the_budget_of_a_token_binds_what_is_spawned_with_it(town: Town) -> None:
    """B03: through the whole way, and other tokens of the same tenant are not touched."""
    spends = prompt_with([{"text": "spent"}])
    _, rich = await token(town.home, "rich", principal="alice", budget_usd=50)
    outcome = call(town.site, "spawn_agent", {"prompt": spends}, **rich)
    report = call(town.site, "get_costs", {"session_id": outcome["session_id"]}, **rich)
    assert "budgets" in report, report
    (budget,) = [one for one in report["budgets"] if one["scope"] == "token"]
    assert budget["spent_usd"] == pytest.approx(outcome["cost"]["usd"])
    assert budget["spent_usd"] > 0
    _, poor = await token(town.home, "poor", principal="alice", budget_usd=0.0001)
    refused = call(town.site, "spawn_agent", {"prompt": spends}, **poor)
    assert refused["stop_reason"] == "budget_exceeded"
    assert "API token" in refused["error"]["message"]
    assert refused["cost"]["usd"] == 0
