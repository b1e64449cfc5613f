"""The bundled Claude Code CLI against the gateway, over the Unix socket as in a sandbox; the model is scripted.

What DESIGN section 4 says about the CLI's ways with its upstream is checked here again, so that a moved pin is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import claude_agent_sdk
import pytest

from server.errors import ErrorCode
from server.gateway import Grant, classify
from server.gateway.requests import build, read_head
from server.gateway.scripted import prompt_with
from tests.gateways import House, gateway_before_scripted

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
PATIENCE_S = 60.0


@dataclass
class Run:
    """What the CLI said."""

    messages: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        return next(message for message in reversed(self.messages) if message["type"] == "result")


async def run_cli(house: House, grant: Grant, home: Path, steps: Sequence[dict[str, Any]], *arguments: str) -> Run:
    """One prompt through the real CLI with nothing but the socket and the token."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / "config"),
        "ANTHROPIC_UNIX_SOCKET": str(house.socket),
        "ANTHROPIC_BASE_URL": "http://gateway.rookery.internal",
        "ANTHROPIC_API_KEY": grant.token,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
    }
    work = home / "work"
    work.mkdir(exist_ok=True)
    options = ("--output-format=stream-json", "--verbose", "--setting-sources=", "--permission-mode=bypassPermissions")
    command = [str(CLI), "-p", prompt_with(list(steps)), *options, "--model=claude-sonnet-4-5", *arguments]
    with anyio.fail_after(PATIENCE_S):
        finished = await anyio.run_process(command, env=environment, cwd=work, check=False)
    lines = [line for line in finished.stdout.splitlines() if line.startswith(b"{")]
    return Run([json.loads(line) for line in lines])


async def test_the_cli_works_through_the_gateway_and_every_request_is_in_the_ledger(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"thinking": "I need a file."},
        {"usage": {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 5}},
        {"tool": "Write", "input": {"file_path": str(tmp_path / "work" / "a.txt"), "content": "from the model\n"}},
        {"usage": {"input_tokens": 30, "output_tokens": 40}},
        {"tool": "Bash", "input": {"command": "cat a.txt; echo $((6*7))"}},
        {"usage": {"input_tokens": 50, "output_tokens": 60}},
        {"reply_with": "last_tool_result"},
    ]
    async with gateway_before_scripted() as (house, scripted):
        grant = house.grant()
        run = await run_cli(house, grant, tmp_path, steps)
        assert run.result["result"] == "from the model\n42"
        assert (tmp_path / "work" / "a.txt").read_text() == "from the model\n"
        await grant.quiet()
        usage = house.ledger.usage
        assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (90, 120, 5)
        assert len(house.ledger.entries) == len(scripted.requests) == 3
        assert all(entry.nano_usd and entry.complete and not entry.estimated for entry in house.ledger.entries)
        assert not grant.failures


async def test_nothing_that_the_cli_sends_of_itself_is_taken_out(tmp_path: Path) -> None:
    """A new CLI may send fields, blocks or betas that the gateway does not know yet: this notices."""
    heads: list[Any] = []
    bodies: list[bytes] = []
    async with gateway_before_scripted() as (house, _):
        inner = house.gateway.__call__

        async def spy(scope: Any, receive: Any, send: Any) -> None:
            async def record() -> Any:
                message = await receive()
                bodies[-1] += message.get("body", b"")
                return message

            if scope["path"] == "/v1/messages":
                heads.append(read_head(scope))
                bodies.append(b"")
                await inner(scope, record, send)
            else:
                await inner(scope, receive, send)

        from tests.gateways import serving

        async with serving(spy) as path:
            watched = House(house.gateway, house.ledger, path)
            steps: list[dict[str, Any]] = [
                {"thinking": "x"},
                {"tool": "Bash", "input": {"command": "true"}},
                {"text": "done"},
            ]
            run = await run_cli(watched, house.grant(), tmp_path, steps)
        assert run.result["result"] == "done"
        assert len(bodies) == 2
        for head, body in zip(heads, bodies, strict=True):
            outbound = build(head, body, frozenset())
            assert outbound.removed == ()
            assert outbound.body == json.loads(body)
            assert outbound.headers["anthropic-beta"].split(",") == head.headers["anthropic-beta"].split(",")


async def test_the_answer_takes_the_form_that_was_asked_for(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with gateway_before_scripted() as (house, _):
        steps: list[dict[str, Any]] = [{"structured": {"n": 7}}, {"text": "done"}]
        run = await run_cli(house, house.grant(), tmp_path, steps, f"--json-schema={json.dumps(schema)}")
        assert run.result["structured_output"] == {"n": 7}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, ErrorCode.MODEL_AUTH_FAILED),
        (402, ErrorCode.MODEL_AUTH_FAILED),
        (403, ErrorCode.MODEL_AUTH_FAILED),
        (404, ErrorCode.INVALID_ARGUMENT),
    ],
)
async def test_the_cli_gives_up_at_once_where_a_retry_is_useless(tmp_path: Path, status: int, code: ErrorCode) -> None:
    async with gateway_before_scripted() as (house, _):
        grant = house.grant()
        run = await run_cli(house, grant, tmp_path, [{"error": status}])
        assert run.result["is_error"]
        assert run.result["api_error_status"] == status
        # The CLI asks a second time, without streaming, whether the model is really unknown.
        assert grant.requests == (2 if status == 404 else 1)
        verdict = classify(grant.failures)
        assert verdict is not None
        assert verdict.code is code


@pytest.mark.parametrize(
    "failing",
    [
        [{"error": 429, "retry_after": 0, "times": 1}],
        [{"error": 529, "times": 1}],
        [{"error": 500, "times": 1}],
        [{"text": "half of"}, {"cut": True, "times": 1}],
        [{"text": "half of"}, {"error_event": "overloaded_error", "times": 1}],
    ],
)
async def test_the_cli_recovers_from_what_passes_and_each_attempt_is_in_the_ledger(
    tmp_path: Path, failing: list[dict[str, Any]]
) -> None:
    async with gateway_before_scripted() as (house, _):
        grant = house.grant()
        run = await run_cli(house, grant, tmp_path, [*failing, {"text": "recovered"}])
        assert not run.result["is_error"]
        assert "recovered" in run.result["result"]
        assert len(house.ledger.entries) == grant.requests == 2
        assert classify(grant.failures) is None


async def test_a_revoked_token_ends_the_cli_soon(tmp_path: Path) -> None:
    async with gateway_before_scripted() as (house, scripted):
        grant = house.grant()

        async def revoke() -> None:
            while not scripted.requests:
                await anyio.sleep(0.01)
            grant.revoke()

        async with anyio.create_task_group() as group:
            group.start_soon(revoke)
            run = await run_cli(house, grant, tmp_path, [{"text": "a " * 50, "token_delay_s": 1}])
        assert run.result["is_error"]
        assert len(house.ledger.entries) == 1
