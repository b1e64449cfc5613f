"""Rows R20 to R25 through the whole house, and one policy at the four places that enforce it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies import Effect, Facts, ToolRequest, decide
from server.errors import RookeryError
from server.permissions.authority import SessionAuthority
from server.policy_book import PolicyBook, lineage
from tests.house import ME, bash, go_on, open_house, run
from tests.integration.test_policies import NO_TOUCH, policy_dir, write
from tests.unit.store.records import a_session

REPLY = {"reply_with": "last_tool_result"}

REWRITES = """
version: 1
extends: trusted
rules:
  - id: bounded
    effect: rewrite
    tools: [Bash]
    set: {timeout: 5000}
    because: "commands are bounded"
"""

CALLS: dict[str, dict[str, Any]] = {
    "Bash": {"command": "ls"},
    "Read": {"file_path": "/workspace/a"},
    "Write": {"file_path": "/workspace/a", "content": ""},
    "Edit": {"file_path": "/workspace/a", "old_string": "a", "new_string": "b"},
    "Glob": {"pattern": "*"},
    "Grep": {"pattern": "a"},
    "WebFetch": {"url": "https://example.com/", "prompt": "read"},
    "WebSearch": {"query": "a"},
}


async def test_r20_a_field_that_would_leave_the_sandbox_is_taken_out_of_the_call(tmp_path: Path) -> None:
    """Row R20: ``dangerouslyDisableSandbox`` changes nothing: the call runs inside, and the audit says so."""
    async with open_house(tmp_path) as registry:
        outcome = await run(registry, [bash("touch made", dangerouslyDisableSandbox=True), REPLY])
        assert outcome.changed_files == ("made",)
        (row, *_) = await registry.decisions(ME, session_id=outcome.session_id)
        assert row.rewritten


async def test_r21_a_rewritten_call_runs_as_rewritten_and_a_denial_holds_after_it(tmp_path: Path) -> None:
    """Row R21: a rewrite is judged again, and frees nothing."""
    policies = policy_dir(tmp_path, organisation=NO_TOUCH, own=REWRITES)
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await run(registry, [bash("echo fine > made"), bash("touch other"), REPLY], policy="own")
        assert (outcome.denials, outcome.changed_files) == (1, ("made",))
        rows = await registry.decisions(ME, session_id=outcome.session_id)
        assert [(row.decision, row.rewritten) for row in rows] == [("allow", True), ("deny", False)]


async def test_r22_files_of_the_workspace_that_allow_what_a_rule_denies_change_nothing(tmp_path: Path) -> None:
    """Row R22: settings and hooks that the agent writes for the CLI do not reach it."""
    settings = '{"permissions": {"allow": ["Bash(touch:*)"], "defaultMode": "bypassPermissions"}}'
    policies = policy_dir(tmp_path, narrow=NO_TOUCH)
    plant = f"mkdir -p .claude && echo '{settings}' | tee .claude/settings.json .claude/settings.local.json"
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        planted = await run(registry, [bash(plant), REPLY], policy="narrow")
    # The agent that starts now would read them.
    async with open_house(tmp_path / "home", policy_dir=policies) as registry:
        outcome = await go_on(registry, planted.session_id, [bash("touch made"), REPLY])
        assert (outcome.denials, outcome.changed_files) == (1, ())


@pytest.mark.parametrize("fault", ["raises", "junk"])
async def test_r23_a_gate_that_fails_denies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Row R23: whatever goes wrong inside the gate, the real CLI does not run the call."""

    async def broken(self: SessionAuthority, request: ToolRequest, tool_use_id: str) -> object:
        if fault == "raises":
            raise RuntimeError("boom")
        return {"effect": "allow"}

    monkeypatch.setattr(SessionAuthority, "judge", broken)
    async with open_house(tmp_path) as registry:
        outcome = await run(registry, [bash("touch made"), REPLY], policy="trusted")
        assert outcome.changed_files == ()
        assert "could not decide" in outcome.text


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nrulez: []\n",
        "version: 1\nrules:\n  - {id: a, effect: deny, tools: [Bsah]}\n",
        "version: 1\nrules:\n  - {id: a, effect: deny, tools: [Bash]}\n  - {id: a, effect: deny, tools: [Read]}\n",
        "version: 1\nrules:\n  - {id: a, effect: deny, tools: [Read], when: {path: ['secret']}}\n",
    ],
    ids=["key", "tool", "duplicate", "unanchored"],
)
def test_r24_a_faulty_file_is_refused_and_the_last_good_policy_stays(tmp_path: Path, text: str) -> None:
    """Row R24: refused with its line at load; after a good one, the good one stays in force."""
    policies = policy_dir(tmp_path, mine=text)
    with pytest.raises(RookeryError) as refused:
        PolicyBook(policies, "mine").named(None)
    assert "mine.yaml:" in refused.value.message
    write(policies / "mine.yaml", NO_TOUCH)
    book = PolicyBook(policies, "mine")
    good = book.named(None)
    write(policies / "mine.yaml", text)
    assert book.named(None).digest == good.digest
    write(policies / "mine.yaml", "version: 1\nextends: locked-down\n")
    assert book.named(None).digest != good.digest


def test_r25_a_child_works_under_all_layers_of_its_parent(tmp_path: Path) -> None:
    """Row R25: whatever a child names, what its parent may not do is denied."""
    book = PolicyBook(policy_dir(tmp_path, narrow=NO_TOUCH), "workspace")
    child = a_session("c", policy="trusted", parent_policies=(("narrow", ("Bash", "Read")),))
    policy = book.of(child).policy
    assert lineage(child) == (("narrow", ("Bash", "Read")), ("trusted", None))
    decided = {name: decide(ToolRequest(name, given), policy, Facts()).effect for name, given in CALLS.items()}
    assert decided["Bash"] is Effect.ALLOW
    assert decided["Write"] is Effect.DENY
    assert decide(ToolRequest("Bash", {"command": "touch a"}), policy, Facts()).rule == "no-touch"


async def test_r15_the_directory_that_the_shell_stands_in_is_part_of_the_decision(tmp_path: Path) -> None:
    """R15: `cd` in one call, a relative path in the next: judged from where the shell really stands."""
    directory = tmp_path / "policies"
    directory.mkdir()
    (directory / "kept.yaml").write_text(
        "version: 1\nid: kept\nextends: workspace\nrules:\n"
        "  - id: no-kept\n    effect: deny\n    tools: [Bash, Read, Write, Edit]\n"
        '    when: {path: ["/workspace/kept/secret"]}\n    because: "kept"\n'
    )
    async with open_house(tmp_path / "home", policy_dir=directory) as registry:
        steps = [bash("mkdir -p kept"), bash("cd kept"), bash("echo x > secret"), {"reply_with": "last_tool_result"}]
        outcome = await run(registry, steps, policy="kept")
        assert outcome.denials == 1
        assert "kept" in outcome.text
