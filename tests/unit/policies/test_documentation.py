"""The manual of policies says what is true: its example loads and decides as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from policies import PRESETS, parse_policy
from tests.unit.policies.calls import ALLOW, ASK, DENY, bash, read

MANUAL = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()


def test_the_manuals_policy_loads_and_decides_as_it_says() -> None:
    found = re.search(r"```yaml\n(.*?)```", MANUAL, re.DOTALL)
    assert found is not None
    policy = parse_policy(found[1], name="reviewer")
    assert read(".env", policy) is DENY
    assert bash("cat .env", policy).rule == "no-secrets"
    assert bash("git push", policy).effect is ASK
    assert bash("make", policy).effect is ALLOW
    assert bash("make", policy, timeout=600_000).input == {"command": "make", "timeout": 120_000}
    assert policy.network == ("docs.example.com",)


def test_the_manual_describes_every_preset_and_condition() -> None:
    from policies.schema import WhenModel

    for name in PRESETS:
        assert f"| `{name}`" in MANUAL
    for key in WhenModel.model_fields:
        assert f"| `{key}" in MANUAL, key


def test_the_room_loads_neither_grammar_nor_yaml_before_they_are_needed() -> None:
    names = ("tree_sitter", "tree_sitter_bash", "yaml", "pydantic")
    code = f"import sys, policies; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
