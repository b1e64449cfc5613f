"""The commands on approvals, the audit and policies, as processes beside a server of the same home."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio

from server.models import StopReason
from tests.house import ME, bash, open_house, run, spawn, until
from tests.integration.test_approvals import ASKING, STEPS, policy_dir
from tests.surface import environment


async def rookery(home: Path, policies: Path, *arguments: str, code: int = 0) -> str:
    done = await anyio.run_process(
        [sys.executable, "-m", "rookery", *arguments],
        env=environment(home, ROOKERY_POLICY_DIR=str(policies)),
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode()


async def test_a_session_is_replayed_under_another_policy(tmp_path: Path) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies) as registry:
        session_id = (await run(registry, [bash("touch made"), {"text": "done"}], policy="workspace")).session_id
    shown = await rookery(home, policies, "policy", "simulate", session_id, "asking")
    assert "1 call(s) replayed under asking, 1 decided otherwise" in shown
    assert "newly asked" in shown


async def test_policies_are_checked_explained_and_compared(tmp_path: Path) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    assert "asking: loads" in await rookery(home, policies, "policy", "lint")
    assert (await rookery(home, policies, "policy", "explain", "asking", "Bash(touch a)")).startswith("ASK")
    assert "+ ask-for-touch" in await rookery(home, policies, "policy", "diff", "workspace", "asking", code=1)
    table = tmp_path / "table.yaml"
    table.write_text('- {call: "Bash(touch a)", expect: ask}\n- {call: "Bash(ls)", expect: deny}\n')
    assert "1 of 2 case(s) hold" in await rookery(home, policies, "policy", "test", "asking", str(table), code=1)
    (policies / "broken.yaml").write_text(ASKING.replace("effect: ask", "effect: maybe"))
    assert "broken.yaml:" in await rookery(home, policies, "policy", "lint", code=1)


async def test_an_answer_on_the_command_line_reaches_the_agent_of_a_server(tmp_path: Path) -> None:
    home, policies = tmp_path / "home", policy_dir(tmp_path)
    async with open_house(home, policy_dir=policies, approval_hot_s=0.3) as registry:
        session_id = await spawn(registry, STEPS, policy="asking")
        outcome = await until(registry, session_id, lambda now: now.stop_reason is StopReason.AWAITING_APPROVAL)
        (pending,) = outcome.pending_approvals
        assert pending.approval_id in await rookery(home, policies, "approvals", "list")
        await rookery(home, policies, "approvals", "answer", pending.approval_id, "--allow")
        outcome = await until(registry, session_id, lambda now: now.stop_reason is StopReason.END_TURN)
        assert outcome.changed_files == ("made",)
        rows = [json.loads(line) for line in (await rookery(home, policies, "audit", "--json")).splitlines()]
        humans = [row for row in await registry.decisions(ME) if row.decider == "human"]
        assert {row["decided_by"] for row in rows if row["decider"] == "human"} == {"command line"}
        assert len(humans) >= 1
