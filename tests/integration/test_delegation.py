"""Agents that have agents: beneath their policy, of their budget, as deep and as many as allowed, ended with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from server.delegation import PREFIX, Admissions
from server.errors import ErrorCode, RookeryError
from server.gateway.scripted import prompt_with
from server.models import EventKind, Outcome, SessionState
from server.registry import Registry
from server.requests import CostRequest, ListRequest, SpawnRequest
from server.views import SessionSummary
from tests.house import ME, bash, events, open_house, run, settled, spawn
from tests.integration.test_policies import policy_dir
from tools.delegation import TOOLS, AgentTools

DELEGATE = """
  - id: delegate
    effect: allow
    tools: ["mcp__rookery__*"]
    because: may have agents of its own
"""

BOSS = f"version: 1\nextends: workspace\nrules:{DELEGATE}"

REPLY = {"reply_with": "tool_results"}


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    """A step in which the agent calls one of Rookery's tools."""
    return {"tool": f"{PREFIX}{tool}", "input": arguments}


def child(*steps: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """A step in which the agent spawns another and waits for it."""
    return call("spawn_agent", prompt=prompt_with(list(steps)), **{"wait_s": 45, **arguments})


async def children_of(registry: Registry, session_id: str) -> list[SessionSummary]:
    page = await registry.list(ME, ListRequest(parent_id=session_id))
    return list(page.sessions)


async def told(registry: Registry, outcome: Outcome) -> str:
    """What the tools answered the agent."""
    log = await events(registry, outcome.session_id)
    return "\n".join(str(event.data["text"]) for event in log if event.kind is EventKind.TOOL_RESULT)


async def test_an_agent_has_an_agent_that_has_an_agent_and_all_is_one_tree(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path / "home", policy_dir=policies, policy="boss") as registry:
        deepest = child(bash("echo deep > found.txt"), {"text": "the deepest is done"})
        outcome = await run(registry, [child(deepest, {"text": "the middle is done"}), {"text": "all is done"}])
        assert outcome.text == "all is done", await told(registry, outcome)
        assert "the middle is done" in await told(registry, outcome)
        (middle,) = await children_of(registry, outcome.session_id)
        (last,) = await children_of(registry, middle.session_id)
        assert (await registry.get(ME, last.session_id)).root_id == outcome.session_id
        assert (await registry.read_file(ME, last.session_id, "found.txt")).text == "deep\n"
        tree = await registry.costs(ME, CostRequest(session_id=outcome.session_id, tree=True, group_by="session"))
        assert {group.key for group in tree.groups} == {outcome.session_id, middle.session_id, last.session_id}
        assert tree.total.usd > outcome.cost.usd


async def test_r25_a_child_can_do_nothing_that_its_parent_may_not(tmp_path: Path) -> None:
    """R25: whatever policy the agent names for it."""
    narrow = f"{BOSS}  - id: no-touch\n    effect: deny\n    tools: [Bash]\n    when: {{argv: [touch]}}\n"
    policies = policy_dir(tmp_path, narrow=narrow)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        attempt = child(bash("touch made"), REPLY, policy="trusted")
        outcome = await run(registry, [attempt, {"text": "done"}], policy="narrow")
        (grown,) = await children_of(registry, outcome.session_id)
        denied = [event for event in await events(registry, grown.session_id) if event.kind is EventKind.DENIAL]
        assert [event.data["rule"] for event in denied] == ["no-touch"]
        with pytest.raises(RookeryError):
            await registry.read_file(ME, grown.session_id, "made")


async def test_b06_depth_and_fan_out_are_bounded(tmp_path: Path) -> None:
    """B06: agents that spawn agents come to an end, whatever they are told to do."""
    deep = BOSS.replace("rules:", "limits: {depth: 1}\nrules:")
    alone = BOSS.replace("rules:", "limits: {children: 1}\nrules:")
    policies = policy_dir(tmp_path, deep=deep, alone=alone)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [child(child({"text": "too deep"}), REPLY), {"text": "done"}], policy="deep")
        (first,) = await children_of(registry, outcome.session_id)
        assert await children_of(registry, first.session_id) == []
        working: list[dict[str, Any]] = [{"delay_s": 30.0}, {"text": "late"}]
        steps = [child(*working, wait_s=0), child({"text": "second"}), REPLY]
        outcome = await run(registry, steps, policy="alone")
        assert "policy_denied" in outcome.text or "Only 1 agents" in outcome.text
        (only,) = await children_of(registry, outcome.session_id)
        await registry.end(ME, outcome.session_id, delete=False, descendants=True)
        assert (await registry.outcome(ME, only.session_id)).state is SessionState.ENDED


async def test_the_settings_bound_what_no_policy_bounds(tmp_path: Path) -> None:
    """B06."""
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path / "home", policy_dir=policies, policy="boss", max_depth=0) as registry:
        outcome = await run(registry, [child({"text": "never"}), REPLY])
        assert await children_of(registry, outcome.session_id) == []


async def test_children_spend_of_their_parents_budget(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path / "home", policy_dir=policies, policy="boss") as registry:
        greedy, modest = child({"text": "x"}, budget_usd=1.5), child({"text": "fits"}, budget_usd=0.4)
        outcome = await run(registry, [greedy, modest, child({"text": "unnamed"}), REPLY], budget_usd=1.0)
        assert "budget_exceeded" in outcome.text
        budgets = {one.title: one.session_id for one in await children_of(registry, outcome.session_id)}
        caps = sorted([(await registry.get(ME, one)).budget_usd or 0 for one in budgets.values()])
        assert len(caps) == 2
        assert max(caps) == pytest.approx(0.4)
        assert sum(caps) < 1.0


async def test_an_agent_reaches_its_offspring_and_no_other_session(tmp_path: Path) -> None:
    """T02, within one principal: its other sessions read as not found."""
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path / "home", policy_dir=policies, policy="boss") as registry:
        other = await run(registry, [bash("echo private > diary.txt"), {"text": "mine"}])
        foreign = other.session_id
        steps = [
            call("read_transcript", session_id=foreign),
            call("read_file", session_id=foreign, path="diary.txt"),
            call("end_session", session_id=foreign),
            call("continue_session", session_id=foreign, prompt="go on"),
            call("get_costs", session_id=foreign),
            call("list_sessions"),
            REPLY,
        ]
        outcome = await run(registry, steps)
        assert outcome.text.count("session_not_found") == 5, outcome.text
        assert "private" not in outcome.text
        assert (await registry.outcome(ME, foreign)).state is SessionState.IDLE


async def test_an_agent_cannot_have_files_of_the_host_given_to_its_children(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, boss=BOSS)
    secrets = tmp_path / "shared"
    secrets.mkdir()
    (secrets / "secret.txt").write_text("canary")
    given = {"policy_dir": policies, "policy": "boss", "workspace_roots": (tmp_path,)}
    async with open_house(tmp_path / "home", **given) as registry:
        steps = [
            child({"text": "x"}, workspace={"path": str(secrets)}),
            child({"text": "x"}, workspace={"git": "https://github.com/some/where"}),
            child(bash("cat note.txt"), REPLY, workspace={"files": {"note.txt": "from my parent"}}),
            REPLY,
        ]
        outcome = await run(registry, steps)
        assert outcome.text.count("policy_denied") == 2, outcome.text
        assert "from my parent" in outcome.text
        assert len(await children_of(registry, outcome.session_id)) == 1


async def test_an_agent_whose_policy_says_nothing_of_it_is_given_no_tools(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        outcome = await run(registry, [child({"text": "x"}), REPLY], policy="trusted")
        assert await children_of(registry, outcome.session_id) == []


async def test_ending_with_descendants_ends_those_that_work(tmp_path: Path) -> None:
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path / "home", policy_dir=policies, policy="boss") as registry:
        waits: list[dict[str, Any]] = [{"delay_s": 60.0}, {"text": "late"}]
        parent = await spawn(registry, [child(child(*waits, wait_s=0), {"text": "m"}), {"text": "done"}])
        await settled(registry, parent)
        (middle,) = await children_of(registry, parent)
        (last,) = await children_of(registry, middle.session_id)
        answer = await registry.end(ME, parent, delete=False, descendants=True)
        assert answer.descendants_ended == 2
        for session in (parent, middle.session_id, last.session_id):
            assert (await registry.outcome(ME, session)).state is SessionState.ENDED


@pytest.mark.parametrize("delete", [False, True])
async def test_what_is_spawned_while_its_parent_is_ended_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delete: bool
) -> None:
    """It would work on, and cost, with nobody who knows of it."""
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path / "home", policy_dir=policies, policy="boss") as registry:
        parent = await spawn(registry, [bash("tail -f /dev/null")])
        listed, late = registry._services.store.descendants, list[str]()

        async def listing(session_id: str) -> list[str]:
            found = await listed(session_id)
            if session_id == parent and not late:
                request = SpawnRequest(prompt=prompt_with([bash("tail -f /dev/null")]))
                late.append(await registry.spawn(ME, request, parent_id=parent))
            return found

        monkeypatch.setattr(registry._services.store, "descendants", listing)
        answer = await registry.end(ME, parent, delete=delete, descendants=True)
        assert answer.descendants_ended == len(late) == 1
        left = (await registry.list(ME, ListRequest(limit=100))).sessions
        assert {one.state for one in left} == (set() if delete else {SessionState.ENDED})


async def test_a_call_that_no_gate_allowed_is_refused(tmp_path: Path) -> None:
    """What comes from the CLI is not trusted: a message made up by whoever got hold of its channel does nothing."""
    policies = policy_dir(tmp_path, boss=BOSS)
    async with open_house(tmp_path, policy_dir=policies, policy="boss") as registry:
        outcome = await run(registry, [{"text": "hello"}])
        session = await registry._services.store.session(ME, outcome.session_id)
        admissions = Admissions()
        tools = AgentTools(lambda: registry, admissions)
        tools.bind(session)
        async with Client(tools.server) as client:
            refused = await client.call_tool("list_sessions", {})
            admissions.admit(f"{PREFIX}list_sessions", {}, "call-1")
            other = await client.call_tool("list_sessions", {"limit": 5})
            allowed = await client.call_tool("list_sessions", {})
            again = await client.call_tool("list_sessions", {})
        for answer in (refused, other, again):
            assert answer.is_error
            assert answer.structured_content is not None
            assert answer.structured_content["code"] == ErrorCode.POLICY_DENIED
        assert not allowed.is_error


def test_no_agent_can_answer_questions_or_fork() -> None:
    names = {tool.name for tool in TOOLS}
    assert "spawn_agent" in names
    assert not names & {"answer_approval", "list_approvals", "fork_session"}
