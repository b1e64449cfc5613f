"""Policies through the whole house: layers, limits, conditions on state, reload, the audit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from policies import PRESETS
from server.errors import ErrorCode, RookeryError
from server.gateway.scripted import prompt_with
from server.models import Decider, Event, EventKind, StopReason
from server.registry import Registry
from server.requests import SpawnRequest
from tests.house import ME, PATIENCE_S, bash, events, go_on, open_house, run, seen, settled, spawn

pytestmark = pytest.mark.providers

NO_TOUCH = """
version: 1
extends: trusted
rules:
  - id: no-touch
    effect: deny
    tools: [Bash]
    when: {argv: [touch]}
    because: "nobody touches"
"""

REPLY = {"reply_with": "last_tool_result"}
TOUCH = [bash("touch made"), REPLY]


def policy_dir(tmp_path: Path, **files: str) -> Path:
    directory = tmp_path / "policies"
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        write(directory / f"{name}.yaml", text)
    return directory


def write(path: Path, text: str) -> None:
    """Replace a file as an editor does, so that no reader sees half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def limited(limits: str, rules: str = "") -> str:
    return f"version: 1\nextends: trusted\nlimits: {limits}\n" + (f"rules:\n{rules}" if rules else "")


def denials(log: list[Event]) -> list[str]:
    return [event.data["rule"] for event in log if event.kind is EventKind.DENIAL]


@pytest.mark.parametrize("profile", [name for name in PRESETS if name not in ("locked-down", "read-only")])
async def test_an_organisation_denies_under_every_profile(tmp_path: Path, profile: str) -> None:
    policies = policy_dir(tmp_path, organisation=NO_TOUCH)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, TOUCH, policy=profile)
        assert outcome.denials == 1
        assert outcome.changed_files == ()
        assert "nobody touches" in outcome.text
        told = await registry.explain_policy(
            ME, session_id=outcome.session_id, policy=None, tool="Bash", tool_input={"command": "touch made"}
        )
        assert (told.decision, told.rule, told.policy) == ("deny", "no-touch", profile)
        assert [match.layer for match in told.matched if match.rule == "no-touch"] == ["organisation"]


async def test_tools_asked_for_are_all_that_may_be_used(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home") as registry:
        outcome = await run(registry, [{"text": "hello"}], policy="trusted", tools=("Read", "Write"))
        told = [
            await registry.explain_policy(ME, session_id=outcome.session_id, policy=None, tool=tool, tool_input=given)
            for tool, given in (("Bash", {"command": "ls"}), ("Read", {"file_path": "/workspace/a"}))
        ]
        assert [one.decision for one in told] == ["deny", "allow"]
        outcome = await go_on(registry, outcome.session_id, TOUCH)
        assert outcome.changed_files == ()


async def test_a_fork_keeps_the_layers_of_its_origin(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, narrow=NO_TOUCH)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        origin = await run(registry, [{"text": "hello"}], policy="narrow", tools=("Bash",))
        (fork,) = await registry.fork(ME, origin.session_id, prompt=None, checkpoint_id=None, count=1)
        outcome = await go_on(registry, fork, TOUCH)
        assert (outcome.denials, outcome.changed_files) == (1, ())


async def test_a_policy_bounds_model_turns_money_and_models(tmp_path: Path) -> None:
    policies = policy_dir(
        tmp_path, organisation=limited("{turns: 2, usd: 0.5}") + "models: [claude-*]\n", own=limited("{usd: 2}")
    )
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [bash("true"), bash("true"), bash("true"), {"text": "end"}], policy="own")
        assert outcome.stop_reason is StopReason.MAX_TURNS
        assert (await registry.get(ME, outcome.session_id)).budget_usd == 0.5
        await go_on(registry, outcome.session_id, [{"text": "fine"}], budget_usd=50.0)
        assert (await registry.get(ME, outcome.session_id)).budget_usd == 0.5
        with pytest.raises(RookeryError) as refused:
            await spawn(registry, "hello", model="other-model")
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT


async def test_r25_a_subagent_gets_no_model_that_the_policy_does_not_name(tmp_path: Path) -> None:
    """R25, through the real CLI: the gateway refuses the subagent's model, and the session goes on with its own."""
    policies = policy_dir(tmp_path, own=limited("{turns: 9}") + 'models: ["claude-sonnet-*"]\n')
    asked = {"description": "x", "prompt": "x", "subagent_type": "general-purpose"}
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        given = asked | {"model": "haiku", "run_in_background": False}
        steps: list[dict[str, Any]] = [{"tool": "Agent", "input": given}, REPLY]
        outcome = await run(registry, steps, policy="own", model="claude-sonnet-4-5")
        assert "does not allow the model claude-haiku" in outcome.text
        assert outcome.stop_reason is StopReason.END_TURN


async def test_a_model_that_is_no_longer_allowed_is_refused_in_running_sessions(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, own=limited("{turns: 9}") + 'models: ["claude-sonnet-*"]\n')
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session = await begin(registry, "own", REPLY, model="claude-sonnet-4-5")
        write(policies / "own.yaml", limited("{turns: 9}") + 'models: ["claude-haiku-*"]\n')
        await _let_go(registry, session)
        outcome = await settled(registry, session)
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.POLICY_DENIED
        assert "only claude-haiku-*" in outcome.error.message


async def test_a_policy_bounds_the_wall_time_of_a_turn(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, brief=limited("{wall: 2s}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [bash("while true; do sleep 0.1; done"), {"text": "late"}], policy="brief")
        assert outcome.stop_reason is StopReason.TIMEOUT
        assert outcome.error is not None
        assert "2 s" in outcome.error.message


async def test_a_policy_bounds_tool_calls_within_a_minute(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, slow=limited("{tool_calls_per_min: 2}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [bash("true"), bash("true"), bash("touch made"), REPLY], policy="slow")
        assert denials(await events(registry, outcome.session_id)) == ["rookery:rate"]
        assert outcome.changed_files == ()


ONCE = """
  - id: once
    effect: deny
    tools: [Bash]
    when: {count: {tool: Bash, at_least: 2}}
    because: "twice is enough"
"""


async def test_conditions_on_state_outlive_the_server(tmp_path: Path) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path, once=limited("{}", ONCE))
    async with open_house(home, policy_dir=policies) as registry:
        outcome = await run(registry, [bash("true"), {"text": "one"}], policy="once")
        session_id = outcome.session_id
    async with open_house(home, policy_dir=policies) as registry:
        outcome = await go_on(registry, session_id, [bash("touch two"), bash("touch three"), REPLY])
        assert outcome.changed_files == ("two",)
        assert denials(await events(registry, session_id)) == ["once"]
    async with open_house(home, policy_dir=policies) as registry:
        # A denied call was never admitted, and is not counted; the two others are.
        outcome = await go_on(registry, session_id, [bash("touch four"), REPLY])
        assert (outcome.denials, outcome.changed_files) == (1, ())


STATE = """
version: 1
extends: trusted
roles:
  reader: {tools: [Read, Glob, Grep]}
rules:
  - id: no-shell-after-reading
    effect: deny
    tools: [Bash]
    when: {after: {tool: Read, within: session}}
    because: "first think"
  - id: one-search
    effect: deny
    tools: [Glob]
    when: {count: {tool: Glob, at_least: 1, within: turn}}
    because: "one search a turn"
"""


async def test_roles_earlier_calls_and_calls_in_flight_bind_a_running_agent(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, own=STATE)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [{"reply_with": "tools"}], policy="own@reader")
        assert {"Bash", "Glob", "Read", "Write"} & set(outcome.text.split()) == {"Glob", "Read"}
        told = await registry.explain_policy(
            ME, session_id=outcome.session_id, policy=None, tool="Bash", tool_input={"command": "ls"}
        )
        assert (told.decision, told.rule) == ("deny", "rookery:role")
        search: dict[str, Any] = {"tool": "Glob", "input": {"pattern": "*.py"}}
        reading = {"tool": "Read", "input": {"file_path": "/workspace/none"}}
        steps = [bash("touch before"), search, {**search, "parallel": True}, reading, bash("touch after"), REPLY]
        outcome = await run(registry, steps, policy="own")
        assert outcome.changed_files == ("before",)
        assert denials(await events(registry, outcome.session_id)) == ["one-search", "no-shell-after-reading"]
        told = await registry.explain_policy(
            ME, session_id=outcome.session_id, policy=None, tool="Bash", tool_input={"command": "ls"}
        )
        assert told.rule == "no-shell-after-reading", "what is explained is what would be decided"
        with pytest.raises(RookeryError, match=r"has no role 'writer'.*reader"):
            await spawn(registry, "hello", policy="own@writer")


async def test_r25_b06_children_work_beneath_their_parent_and_within_its_bounds(tmp_path: Path) -> None:
    """R25 and B06: whatever a child names, it gets no more than its parent has, nor more children than it may."""
    narrow = NO_TOUCH.replace("extends: trusted", "extends: trusted\nlimits: {depth: 1, children: 1}")
    narrow = narrow.replace("effect: deny", "effect: deny\n    advisory: true")
    policies = policy_dir(tmp_path, narrow=narrow)

    async def child(prompt: list[dict[str, Any]], **request: Any) -> str:
        given = SpawnRequest(prompt=prompt_with(prompt), policy="trusted", budget_usd=0.1, **request)
        return await registry.spawn(ME, given, parent_id=parent.session_id)

    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        parent = await run(registry, [{"text": "hello"}], policy="narrow", tools=("Bash", "Read"))
        waiting = bash("echo > started; while [ ! -e /workspace/go ]; do sleep 0.05; done")
        answers: list[str | RookeryError] = []

        async def at_once() -> None:
            try:
                answers.append(await child([waiting, bash("touch made"), REPLY]))
            except RookeryError as error:
                answers.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(at_once)
        (first,) = [one for one in answers if isinstance(one, str)]
        assert {one.code for one in answers if isinstance(one, RookeryError)} == {ErrorCode.POLICY_DENIED}
        view = await registry.get(ME, first)
        assert (view.parent_id, view.root_id) == (parent.session_id, parent.session_id)
        with pytest.raises(RookeryError, match="nested 1 deep"):
            await registry.spawn(ME, SpawnRequest(prompt="deeper", policy="trusted"), parent_id=first)
        await _let_go(registry, first)
        outcome = await settled(registry, first)
        assert (outcome.denials, "made" in outcome.changed_files) == (1, False)
        # One that rests takes no place, but takes one again when it goes on.
        second = await child([waiting, REPLY])
        with pytest.raises(RookeryError, match="only 1 agents"):
            await go_on(registry, first, [{"text": "late"}])
        await registry.end(ME, second, delete=False)
        offered = set((await go_on(registry, first, [{"reply_with": "tools"}])).text.split())
        assert {"Bash", "Read", "Write", "WebFetch"} & offered == {"Bash", "Read"}


async def test_a_tightened_file_holds_for_a_turn_that_runs(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, living=limited("{}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session_id = await begin(registry, "living", bash("touch made"), REPLY)
        write(policies / "living.yaml", NO_TOUCH)
        await _let_go(registry, session_id)
        outcome = await settled(registry, session_id)
        assert outcome.denials == 1
        assert outcome.changed_files == ("go", "started")


async def test_a_tightened_file_bounds_the_time_of_a_turn_that_runs(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, living=limited("{wall: 10m}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session_id = await begin(registry, "living", {"text": "late"})
        write(policies / "living.yaml", limited("{wall: 1s}"))
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.TIMEOUT
        assert outcome.error is not None
        assert "1 s" in outcome.error.message


async def test_a_tightened_file_bounds_the_money_of_a_turn_that_runs(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, living=limited("{}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session_id = await begin(registry, "living", {"text": "late"})
        write(policies / "living.yaml", limited("{usd: 0.00001}"))
        with anyio.fail_after(PATIENCE_S):
            while (await registry.get(ME, session_id)).budget_usd != 0.00001:
                await anyio.sleep(0.1)
        await _let_go(registry, session_id)
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.BUDGET_EXCEEDED


async def test_a_tightened_file_bounds_the_models_turns_in_a_turn_that_runs(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, living=limited("{turns: 9}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session_id = await begin(registry, "living", bash("touch last"), bash("touch more"), REPLY)
        write(policies / "living.yaml", limited("{turns: 2}"))
        await _let_go(registry, session_id)
        outcome = await settled(registry, session_id)
        assert (outcome.stop_reason, outcome.error) == (StopReason.MAX_TURNS, None)
        assert outcome.changed_files == ("go", "last", "started")
        # The agent lives on, and was told of nine turns when it started.
        outcome = await go_on(registry, session_id, [bash("true"), REPLY])
        assert (outcome.stop_reason, outcome.turn) == (StopReason.END_TURN, 2)
        outcome = await go_on(registry, session_id, [bash("true"), bash("true"), bash("touch more"), REPLY])
        assert (outcome.stop_reason, outcome.changed_files) == (StopReason.MAX_TURNS, ())


async def test_a_turn_with_more_turns_of_the_model_than_are_allowed_by_now_stops_in_the_midst_of_a_call(
    tmp_path: Path,
) -> None:
    policies = policy_dir(tmp_path, living=limited("{}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        waits = bash("echo > waits; tail -f /dev/null")
        session_id = await begin(registry, "living", waits, {"text": "late"})
        await _let_go(registry, session_id)
        with anyio.fail_after(PATIENCE_S):
            while "waits" not in {entry.path for entry in (await registry.list_files(ME, session_id)).entries}:
                await anyio.sleep(0.05)
        write(policies / "living.yaml", limited("{turns: 1}"))
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.MAX_TURNS
        assert (await go_on(registry, session_id, [{"text": "fine"}])).text == "fine"


async def test_an_answer_in_the_last_turn_that_a_tightened_file_allows_is_a_good_end(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, living=limited("{turns: 9}"))
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        session_id = await begin(registry, "living", REPLY)
        write(policies / "living.yaml", limited("{turns: 2}"))
        await _let_go(registry, session_id)
        assert (await settled(registry, session_id)).stop_reason is StopReason.END_TURN


async def test_a_broken_file_leaves_the_last_good_policy_in_force_and_says_so(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, living=NO_TOUCH)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [{"text": "hello"}], policy="living")
        write(policies / "living.yaml", "version: 1\nrulez: []\n")
        outcome = await go_on(registry, outcome.session_id, TOUCH)
        assert (outcome.denials, outcome.changed_files) == (1, ())
        notices = [
            event.data["text"]
            for event in await events(registry, outcome.session_id)
            if event.kind is EventKind.NOTICE and event.data.get("level") == "error"
        ]
        assert len(notices) == 1
        assert "rulez" in notices[0]
        assert "stays in force" in notices[0]


async def test_a_file_that_was_broken_from_the_start_starts_nothing(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, broken="version: 1\nrulez: []\n")
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        with pytest.raises(RookeryError) as refused:
            await spawn(registry, "hello", policy="broken")
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT
        assert "broken.yaml:2" in refused.value.message
        assert (await run(registry, [{"text": "hello"}])).text == "hello"
    write(policies / "organisation.yaml", "version: 1\nrulez: []\n")
    with pytest.raises(BaseException) as start:
        async with open_house(tmp_path / "home", policy_dir=policies):
            pytest.fail("the server started")
    assert "rulez" in _messages(start.value)


async def test_every_decision_is_in_the_audit_with_who_decided(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, narrow=NO_TOUCH)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [bash("true"), bash("touch made"), REPLY], policy="narrow")
        rows = await registry.decisions(ME, session_id=outcome.session_id)
        assert [row.decision for row in rows] == ["allow", "deny"]
        assert rows[1].rule == "no-touch"
        assert rows[1].decider is Decider.RULE
        assert rows[1].matched[0].startswith("profile:")
        assert len(rows[1].policy_digest) == len(rows[1].request_digest) == 64
        assert rows[0].latency_us > 0
        assert await registry.decisions("somebody-else") == []


async def begin(registry: Registry, policy: str, *then: dict[str, Any], **request: Any) -> str:
    """A session that is in the midst of a command, which waits for :func:`_let_go`."""
    waiting = bash("echo > started; while [ ! -e /workspace/go ]; do sleep 0.05; done")
    session_id = await spawn(registry, [waiting, *then], policy=policy, **request)
    await seen(registry, session_id, EventKind.TOOL_CALL)
    with anyio.fail_after(PATIENCE_S):
        # The event comes before the call is judged; the file tells that it runs.
        while not (await registry.list_files(ME, session_id)).entries:
            await anyio.sleep(0.05)
    return session_id


async def _let_go(registry: Registry, session_id: str) -> None:
    """End the wait of an agent that watches for a file, from the host's side of its workspace."""
    session = await registry._services.store.session(ME, session_id)
    sandbox = await registry._services.attach(session)
    assert sandbox.workspace is not None
    await anyio.Path(sandbox.workspace / "go").touch()


def _messages(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return " ".join(_messages(inner) for inner in error.exceptions)
    return str(error)
