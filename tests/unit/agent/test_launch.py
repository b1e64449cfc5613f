"""How the CLI is started."""

from __future__ import annotations

import json

from server.agent.launch import LaunchOptions, arguments, environment, transcript_files

SESSION = "0b9d1a52-1c1f-4a3c-9a34-7d5f4f0f8a11"


def test_the_argument_list_is_the_one_that_was_measured() -> None:
    assert arguments(LaunchOptions(tools=("Bash", "Read")), SESSION, resume=False) == (
        "/opt/rookery/claude",
        "--output-format=stream-json",
        "--verbose",
        "--input-format=stream-json",
        "--permission-prompt-tool=stdio",
        "--permission-mode=default",
        "--setting-sources=",
        "--strict-mcp-config",
        "--replay-user-messages",
        "--session-mirror",
        f"--session-id={SESSION}",
        "--tools=Bash,Read",
    )


def test_s11_values_from_outside_are_bound_to_their_flags() -> None:
    """Row S11: a value that looks like a flag must not become one."""
    options = LaunchOptions(
        tools=("Bash",),
        model="--dangerously-skip-permissions",
        system_prompt="--allow-dangerously-skip-permissions",
        max_turns=3,
        output_schema='{"type": "object"}',
    )
    command = arguments(options, SESSION, resume=True)
    assert "--model=--dangerously-skip-permissions" in command
    assert "--system-prompt=--allow-dangerously-skip-permissions" in command
    assert not any(word.startswith("--dangerously") or word.startswith("--allow") for word in command)
    assert f"--resume={SESSION}" in command


def test_in_process_servers_are_named_to_the_cli() -> None:
    command = arguments(LaunchOptions(tools=(), mcp_servers=("rookery",)), SESSION, resume=False)
    (config,) = [word for word in command if word.startswith("--mcp-config=")]
    assert json.loads(config.partition("=")[2]) == {"mcpServers": {"rookery": {"type": "sdk", "name": "rookery"}}}


def test_x02_the_environment_is_ours_alone() -> None:
    """Row X02: nothing of the server's environment, and no credential but the session's token."""
    variables = environment(LaunchOptions(tools=()), "session-token")
    assert variables["ANTHROPIC_API_KEY"] == "session-token"
    assert variables["ANTHROPIC_UNIX_SOCKET"] == "/run/rookery/gateway.sock"
    assert not {"PATH", "HOME", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"} & variables.keys()


def test_a_sandbox_is_told_of_an_authority_only_where_connections_are_opened() -> None:
    closed = environment(LaunchOptions(tools=(), network=True), "token")
    opened = environment(LaunchOptions(tools=(), network=True, intercept=True), "token")
    added = opened.keys() - closed.keys()
    assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "PIP_CERT"} <= added
    assert {opened[name] for name in added} == {
        "/home/agent/.claude/rookery-authorities.pem",
        "/home/agent/.claude/rookery-authority.pem",
    }


def test_a_transcript_is_written_where_the_cli_looks_for_it() -> None:
    files = transcript_files(SESSION, [{"type": "user", "text": "ü\udcff"}], {"subagents/agent-1": [{"type": "user"}]})
    main = files[f"projects/-workspace/{SESSION}.jsonl"]
    assert json.loads(main) == {"type": "user", "text": "ü\udcff"}
    assert f"projects/-workspace/{SESSION}/subagents/agent-1.jsonl" in files
