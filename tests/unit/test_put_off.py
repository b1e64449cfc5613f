"""The transcript that a CLI takes calls up by that were put off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.permissions.put_off import naming_last, without_done


def note(uuid: str, parent: str | None, call: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "parentUuid": parent,
        "type": "attachment",
        "attachment": {"type": "hook_deferred_tool", "toolUseID": call},
    }


def result(uuid: str, parent: str, call: str) -> dict[str, Any]:
    content = [{"type": "tool_result", "tool_use_id": call, "content": "done"}]
    return {"uuid": uuid, "parentUuid": parent, "type": "user", "message": {"role": "user", "content": content}}


ASKED = {"uuid": "a", "parentUuid": None, "type": "assistant", "message": {"content": [{"type": "tool_use"}]}}


def ids(entries: list[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(entry.get("uuid"), entry.get("parentUuid", entry.get("leafUuid"))) for entry in entries]


def test_a_note_whose_call_has_a_result_is_left_out_and_what_hung_on_it_hangs_on_what_is_before() -> None:
    one, two = note("n1", "a", "one"), note("n2", "n1", "two")
    last = {"type": "last-prompt", "leafUuid": "n2"}
    entries = [
        ASKED,
        one,
        two,
        {"uuid": "x", "parentUuid": "n2"},
        last,
        result("r1", "a", "one"),
        result("r2", "x", "two"),
    ]
    kept = without_done(entries, {"one", "two"})
    assert ids(kept) == [("a", None), ("x", "a"), (None, "a"), ("r1", "a"), ("r2", "x")]


def test_a_note_whose_call_waits_stays_and_the_one_to_be_taken_up_comes_last() -> None:
    entries = [
        ASKED,
        note("n1", "a", "one"),
        note("n2", "a", "two"),
        note("n3", "a", "three"),
        result("r2", "a", "two"),
    ]
    kept = without_done(entries, {"one", "two", "three"})
    assert ids(naming_last(kept, "one")) == [
        ("a", None),
        ("n3", "a"),
        ("r2", "a"),
        ("n1", "a"),
    ]


def test_a_note_of_a_call_that_is_not_the_sessions_to_take_up_is_left_out() -> None:
    entries = [ASKED, note("n1", "a", "one"), {"uuid": "x", "parentUuid": "n1"}]
    assert ids(without_done(entries, {"another"})) == [("a", None), ("x", "a")]


def test_an_entry_of_another_shape_is_left_as_it_is() -> None:
    odd: list[dict[str, Any]] = [
        {"uuid": None, "attachment": "hook_deferred_tool"},
        {"attachment": {"type": "hook_deferred_tool", "toolUseID": 7}},
        {"message": {"content": [{"type": "tool_result"}, "text", None]}},
        {"message": {"content": None}},
        note("n1", None, "waits"),
    ]
    assert without_done(odd, {"waits"}) == odd
