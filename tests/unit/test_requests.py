"""A request that passes can be acted on; one that does not says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.requests import SpawnRequest

SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": ("Nope",)}, "no agent has"),
        ({"tools": ("-x",)}, "not a tool name"),
        ({"output_schema": {"type": "nonsense"}}, '"type": "object"'),
        ({"output_schema": {"type": "object", "properties": {"a": {"type": "nonsense"}}}}, "properties/a/type"),
        ({"output_schema": {**SCHEMA, "description": "x" * 200_000}}, "longer than"),
        ({"system_prompt": "ü" * 60_000}, "longer than"),
        ({"model": "--flag"}, "not a model name"),
        ({"policy": "../x"}, "not an identifier"),
        ({"workspace": {"path": "/a", "git": "https://b"}}, "exactly one"),
        ({"workspace": {"files": {}, "ref": "main"}}, "ref goes with git"),
        ({"budget_usd": float("nan")}, "finite"),
    ],
)
def test_a_bad_value_is_refused_with_a_remedy(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SpawnRequest.model_validate({"prompt": "x", **given})
    assert said in str(refused.value)


def test_good_values_pass() -> None:
    request = SpawnRequest(prompt="x", tools=("Read", "Bash"), output_schema=SCHEMA, model="claude-sonnet-5")
    assert request.tools == ("Read", "Bash")
