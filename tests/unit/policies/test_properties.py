"""What holds for every policy and every call: layers only tighten, decisions are pure, explanations agree, nothing
that a model can send makes the engine raise."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies import Effect, Facts, Policy, ToolRequest, combine, decide, load_policy
from policies.catalogue import TOOLS
from policies.explain import explain
from policies.shell.invocations import unwrap
from policies.shell.script import BrokenScriptError
from policies.shell.syntax import read_script
from policies.shell.words import WordKind, read_word
from tests.unit.policies.strategies import policies, requests

FAST = settings(max_examples=80, deadline=None)
LAYERS = ("organisation", "profile", "parent", "session")
FACTS = Facts(links={"/workspace/src": "/workspace/lib", "/tmp/x": "/etc/passwd"})


@FAST
@given(layers=st.lists(policies(), min_size=1, max_size=4), asked=st.lists(requests(), min_size=1, max_size=4))
def test_each_further_layer_only_tightens(layers: list[Policy], asked: list[ToolRequest]) -> None:
    for request in asked:
        strictness = 0
        for count in range(1, len(layers) + 1):
            policy = combine(**dict(zip(LAYERS, layers[:count], strict=False)))
            effect = decide(request, policy, FACTS).effect
            assert effect.strictness >= strictness
            strictness = effect.strictness


@FAST
@given(first=policies(), second=policies(), request=requests())
def test_two_layers_decide_as_the_stricter_of_each_alone(first: Policy, second: Policy, request: ToolRequest) -> None:
    both = decide(request, combine(organisation=first, session=second), FACTS).effect
    assert both is decide(request, first, FACTS).effect.meet(decide(request, second, FACTS).effect)


@FAST
@given(policy=policies(), request=requests())
def test_an_absent_layer_and_a_repeated_one_change_nothing(policy: Policy, request: ToolRequest) -> None:
    alone = decide(request, policy, FACTS)
    for combined in (combine(session=policy), combine(organisation=policy, session=policy)):
        found = decide(request, combined, FACTS)
        assert (found.effect, found.rule, found.because) == (alone.effect, alone.rule, alone.because)


@FAST
@given(policy=policies(), request=requests())
def test_decisions_are_deterministic_and_leave_the_request_alone(policy: Policy, request: ToolRequest) -> None:
    before = dict(request.input)
    assert decide(request, policy, FACTS) == decide(request, policy, FACTS)
    assert request.input == before


@FAST
@given(policy=policies(), request=requests())
def test_an_explanation_shows_the_decision_itself(policy: Policy, request: ToolRequest) -> None:
    explanation = explain(request, policy, FACTS)
    assert explanation.decision == decide(request, policy, FACTS)
    shown = [Effect(layer.effect) for part in explanation.parts for layer in part.layers if layer.effect is not None]
    if shown:
        assert max(shown, key=lambda effect: effect.strictness) is explanation.decision.effect
    matched = {rule.rule for part in explanation.parts for layer in part.layers for rule in layer.rules if rule.matched}
    assert matched >= {rule.rule for rule in explanation.decision.matched}
    assert explanation.as_text() and explanation.as_dict()["decision"] == explanation.decision.effect.value


@FAST
@given(policy=policies(), request=requests())
def test_the_rules_that_an_index_leaves_out_are_those_that_cannot_match(policy: Policy, request: ToolRequest) -> None:
    from policies.decompose import parts_of
    from policies.matching import Matcher
    from policies.parts import RefusedError

    try:
        parts = parts_of(request, FACTS)
    except RefusedError:
        return
    matcher = Matcher(FACTS, None)
    layer = policy.layers[0]
    for part in parts:
        matched = set(map(id, layer.judge(part, matcher).matched))
        for rule in layer.rules:
            applies = matcher.proves(rule, part) if rule.effect is Effect.ALLOW else matcher.possible(rule, part)
            assert applies == (id(rule) in matched)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for tool in TOOLS.values() for name in tool.fields})
HEAD = settings(max_examples=150, deadline=None)


@HEAD
@given(
    tool=st.sampled_from([*TOOLS, "mcp__a__b", "Task", "x"]) | st.text(max_size=10),
    given_input=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=4),
    role=st.none() | st.text(max_size=5),
)
def test_no_call_makes_the_engine_raise(tool: str, given_input: dict[str, Any], role: str | None) -> None:
    for name in ("workspace", "read-only", "trusted"):
        assert decide(ToolRequest(tool, given_input, role), load_policy(name), FACTS).effect in Effect


SHELL = st.text(alphabet=string.printable + "é\u200b\x00$`'\"\\{}()<>|&;*?[]~#!= \n\t", max_size=60)


@settings(max_examples=400, deadline=None)
@given(text=SHELL)
@example("a <<E\n")
@example("\\")
@example("$((")
@example("a=(")
@example("case")
@example("<<<")
@example("a b=c d")
@example("[[ a ")
@example("{a..}")
@example("2>&")
def test_no_text_makes_the_reader_of_scripts_raise_anything_else(text: str) -> None:
    try:
        unwrap(read_script(text))
    except BrokenScriptError as error:
        assert str(error)
    decide(ToolRequest("Bash", {"command": text}), load_policy("workspace"), FACTS)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=string.printable, max_size=30))
def test_a_single_quoted_text_is_read_as_itself(text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"
    word = read_word(quoted)
    if any(character in text for character in "*?["):
        return
    assert word.kind is WordKind.LITERAL
    assert word.text == text


PATH_PARTS = st.sampled_from(["a", "b", "..", ".", "", "src", ".env", "etc", "workspace", "link"])
LINK_TARGETS = st.sampled_from(["a", "../b", "/etc", "/workspace/src", "..", "link", "/", "a/../../x"])


@HEAD
@given(
    parts=st.lists(PATH_PARTS, min_size=1, max_size=8),
    absolute=st.booleans(),
    links=st.dictionaries(st.sampled_from(["/workspace/a", "/workspace/link", "/a", "/workspace/src"]), LINK_TARGETS),
)
def test_no_path_resolves_into_the_workspace_that_the_kernel_would_open_elsewhere(
    parts: list[str], absolute: bool, links: dict[str, str]
) -> None:
    from policies.paths import UnresolvablePathError, resolve

    text = ("/" if absolute else "") + "/".join(parts)
    try:
        found = resolve(text, Facts(links=links))
    except UnresolvablePathError:
        return
    kernel = walk(text if text.startswith("/") else f"/workspace/{text}", links)
    assert kernel is None or kernel in found.candidates


def walk(path: str, links: dict[str, str]) -> str | None:
    """Where Linux ends up, written down independently: one component after the other, links followed at once."""
    here: list[str] = []
    todo = [part for part in path.split("/") if part]
    for _ in range(2000):
        if not todo:
            return "/" + "/".join(here)
        part = todo.pop(0)
        if part == ".":
            continue
        if part == "..":
            here = here[:-1]
            continue
        target = links.get("/" + "/".join([*here, part]))
        if target is None:
            here = [*here, part]
        else:
            here = [] if target.startswith("/") else here
            todo = [step for step in target.split("/") if step] + todo
    return None
