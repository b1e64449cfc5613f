"""What the shim makes of the lines that it carries."""

from __future__ import annotations

import json
import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rookery.daemon.carrying import Agreement, Link, _lines


def test_a_late_answer_to_a_dead_daemon_is_no_answer_to_the_next_one() -> None:
    question = {"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {}}
    asked, links = [], []
    for number in (1, 2):
        here, daemon = socket.socketpair()
        daemon.sendall(json.dumps(question).encode() + b"\n")
        daemon.close()
        link = Link(here, number)
        (message,) = [message for _, message in link.messages()]
        links.append(link)
        asked.append(message["id"])
    first, second = links
    late = {"jsonrpc": "2.0", "id": asked[0], "result": {"action": "accept"}}
    assert second.answer(late) is None
    for own, link in ((asked[0], first), (asked[1], second)):
        answer = link.answer({**late, "id": own})
        assert answer is not None
        assert json.loads(answer)["id"] == 1
        link.close()
    assert second.answer({**late, "id": 1}) is None


def test_a_new_daemon_is_told_what_lasts_and_nothing_else() -> None:
    agreement = Agreement()
    said: list[dict[str, Any]] = [
        {"id": 0, "method": "initialize"},
        {"method": "notifications/initialized"},
        {"id": 1, "method": "resources/subscribe", "params": {"uri": "a"}},
        {"id": 2, "method": "resources/subscribe", "params": {"uri": "b"}},
        {"id": 3, "method": "tools/call", "params": {"name": "spawn_agent"}},
        {"id": 4, "method": "resources/unsubscribe", "params": {"uri": "a"}},
        {"id": 5, "method": "logging/setLevel", "params": {"level": "info"}},
    ]
    for message in said:
        agreement.note(message)
    assert list(agreement.retold()) == [said[0], said[1], said[3], said[6]]


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_lines_are_whole_unless_too_long_or_broken_off(chunks: list[bytes]) -> None:
    chunks = [chunk for chunk in chunks if chunk]
    left = iter([*chunks, b""])
    lines = list(_lines(lambda: next(left), 12))
    assert b"".join(lines) == b"".join(chunks)
    for line in lines[:-1]:
        assert line.endswith(b"\n") or len(line) > 12
        assert b"\n" not in line[:-1]
