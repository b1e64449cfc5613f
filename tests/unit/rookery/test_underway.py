"""How many requests of one client may be under way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mcp_types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from rookery.serving.underway import Underway


def request(number: int) -> JSONRPCRequest:
    return JSONRPCRequest(jsonrpc="2.0", id=number, method="ping")


def test_p02_a_client_that_waits_for_no_answer_is_bounded_also_with_one_id() -> None:
    for numbers in (range(5), [7] * 5):
        underway = Underway(most=3)
        assert [underway.admits(request(number)) for number in numbers] == [True, True, True, False, False]
        underway.hear(JSONRPCResponse(jsonrpc="2.0", id=numbers[0], result={}))
        assert underway.admits(request(9))
        assert not underway.admits(request(9))
        cancel = {"requestId": 9}
        assert underway.admits(JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=cancel))
        assert underway.admits(request(9))


@given(st.lists(st.tuples(st.sampled_from(("ask", "answer", "cancel")), st.integers(0, 3))))
def test_one_who_waits_for_answers_is_always_admitted_again(said: list[tuple[str, int]]) -> None:
    underway = Underway(most=4)
    for what, number in said:
        if what == "ask":
            underway.admits(request(number))
        elif what == "answer":
            underway.hear(JSONRPCResponse(jsonrpc="2.0", id=number, result={}))
        else:
            params = {"requestId": number}
            assert underway.admits(JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=params))
    for number in range(4):
        for _ in range(4):
            underway.hear(JSONRPCResponse(jsonrpc="2.0", id=number, result={}))
    assert [underway.admits(request(number)) for number in range(5)] == [True, True, True, True, False]
