"""One policy at the four places that enforce it: what one of them lets through, the others do not make impossible, and
what one refuses no other lets through."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import PRESETS, Effect, Facts, Policy, ToolRequest, combine, decide, load_policy, parse_policy
from policies.policy import offerable
from server.egress.targets import connect_target
from server.errors import RookeryError
from server.gateway.features import filter_body
from server.launching.agents import launch_options
from server.models import SessionState
from server.policy_book import check_model
from server.settings import Settings
from tests.unit.policies.strategies import policies
from tests.unit.store.records import a_session

URLS: Final = (
    "https://a.test/",
    "https://a.test/pub/x",
    "https://a.test/pub/../x",
    "https://b.a.test/pub",
    "https://pypi.org/simple/",
    "https://example.com/",
    "https://a.test:8443/pub",
)

CALLS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "Bash": ({"command": "ls"}, {"command": "npm test"}, {"command": "echo x > /tmp/y"}),
    "Read": ({"file_path": "/workspace/a"}, {"file_path": "/etc/passwd"}, {"file_path": "/tmp/x"}),
    "Write": ({"file_path": "/workspace/a", "content": ""}, {"file_path": "/tmp/x", "content": ""}),
    "Edit": ({"file_path": "/workspace/a", "old_string": "a", "new_string": "b"},),
    "Glob": ({"pattern": "*"},),
    "Grep": ({"pattern": "a"}, {"pattern": "a", "path": "/workspace/src/a.py"}),
    "WebFetch": tuple({"url": url, "prompt": "read"} for url in URLS),
    "WebSearch": ({"query": "a"},),
}

SEARCH: Final = {"type": "web_search_20250305", "name": "web_search"}

MODELS: Final = ("claude-sonnet-4-5", "claude-haiku-4-5", "gpt-x")

INSIDE: Final = parse_policy(
    "version: 1\nextends: trusted\nmodels: [claude-*]\nroles:\n  reader: {tools: [Read, WebFetch]}\nrules:\n"
    "  - {id: pub, effect: deny, network: [{host: a.test, paths: [/x], intercept: true}]}\n",
    name="inside",
)
NARROW: Final = parse_policy(
    "version: 1\nextends: read-only\nmodels: [claude-sonnet-*]\nrules:\n"
    "  - {id: f, effect: allow, tools: [WebFetch]}\n"
    "  - {id: n, effect: allow, network: [{host: a.test, methods: [GET], paths: [/pub], intercept: true}]}\n",
    name="narrow",
)

WHOLE: Final = (
    *(load_policy(name) for name in PRESETS),
    INSIDE,
    NARROW,
    INSIDE.acting_as("reader"),
    combine(organisation=INSIDE, profile=NARROW),
    combine(organisation=load_policy("developer"), parent=load_policy("trusted"), session=INSIDE),
    load_policy("trusted").restricted_to(["Read", "WebSearch"]),
)


def check(policy: Policy) -> None:
    """Compare what the four places make of one policy."""
    options = launch_options(a_session("s", state=SessionState.IDLE), policy, Settings())
    offered = set(options.tools)
    _check_tools(policy, offered)
    _check_gateway(policy, offered)
    _check_network(policy, network=options.network, intercept=options.intercept)


def _check_tools(policy: Policy, offered: set[str]) -> None:
    """Launch options against the hook: none is offered in vain, and what is not offered is denied."""
    assert offered <= set(offerable())
    for tool, calls in CALLS.items():
        effects = {decide(ToolRequest(tool, given), policy, Facts()).effect for given in calls}
        if tool not in offered:
            assert effects == {Effect.DENY}, tool
        assert (tool in offered) == policy.could_allow(tool)


def _check_gateway(policy: Policy, offered: set[str]) -> None:
    """The gateway against the launch: a search passes where the tool that asks for it is offered; models alike."""
    body = {"model": "m", "tools": [{"name": "Bash", "input_schema": {}}, SEARCH]}
    passed = json.dumps(filter_body(body, policy.server_tools).body)
    assert ("web_search" in passed) == ("WebSearch" in offered)
    for model in MODELS:
        try:
            check_model(policy, model)
            spawned = True
        except RookeryError:
            spawned = False
        assert spawned == policy.permits_model(model)


def _check_network(policy: Policy, *, network: bool, intercept: bool) -> None:
    """The sandbox's proxy against the hook: a fetch that the hook allows gets out, and one that would not is denied."""
    egress = policy.egress
    for url in URLS:
        authority, _, path = url.removeprefix("https://").partition("/")
        target = connect_target(authority if ":" in authority else f"{authority}:443")
        # What the proxy does, step by step: the tunnel, and where it is opened the request inside.
        out = egress.permits(target.host, target.port)
        if out and egress.intercepts(target.host, target.port):
            assert intercept, "the sandbox does not trust the proxy that opens its connections"
            out = egress.permits(target.host, target.port, method="GET", path=f"/{path}")
        assert out == egress.permits_fetch(url)
        assert network or not out
        decided = decide(ToolRequest("WebFetch", {"url": url, "prompt": "x"}), policy, Facts())
        assert out or decided.effect is Effect.DENY, url


@pytest.mark.parametrize("policy", WHOLE, ids=lambda policy: policy.name)
def test_launch_options_hook_gateway_and_proxy_say_the_same(policy: Policy) -> None:
    check(policy)


@settings(max_examples=40)
@given(st.lists(policies(), min_size=1, max_size=2))
def test_the_four_places_agree_on_any_policy(drawn: list[Policy]) -> None:
    check(drawn[0] if len(drawn) == 1 else combine(organisation=drawn[0], session=drawn[1]))


def test_a_role_holds_at_every_place() -> None:
    reader = INSIDE.acting_as("reader")
    offered = launch_options(a_session("s"), reader, Settings()).tools
    assert {"Read", "WebFetch"} >= set(offered) > {"Read"}
    assert reader.server_tools == frozenset()
    assert INSIDE.server_tools == {"web_search"}
