"""Lines of the stdio transport: cut right whatever the chunks are, and never held when too long."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rookery.serving.wire import LineFramer, TooLong, _id_of

LINES = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=8)


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


@given(lines=LINES, cuts=st.lists(st.integers(0, 400), max_size=12), limit=st.integers(1, 50))
def test_lines_come_out_as_they_went_in_and_long_ones_are_counted(
    lines: list[bytes], cuts: list[int], limit: int
) -> None:
    framer = LineFramer(limit)
    data = b"".join(line + b"\n" for line in lines)
    found = [line for chunk in chunks_of(data, cuts) for line in framer.feed(chunk)]
    assert len(found) == len(lines)
    for given_line, line in zip(lines, found, strict=True):
        if len(given_line) <= limit:
            assert line == given_line
        else:
            assert line == TooLong(given_line[:512], given_line[-512:], len(given_line))
    assert list(framer.finish()) == []


@given(head=st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line))
def test_a_last_line_without_an_end_is_not_lost(head: bytes) -> None:
    framer = LineFramer(100)
    assert list(framer.feed(head)) == []
    assert list(framer.finish()) == [head]


def test_p01_an_overlong_line_is_not_kept_in_memory() -> None:
    """P01: a line of any length costs its two edges and one chunk."""
    framer = LineFramer(1_000)
    for _ in range(1_000):
        assert list(framer.feed(b"x" * 1_000)) == []
    assert len(b"".join(framer._parts)) + len(framer._head) + len(framer._tail) <= 2_000
    (line,) = framer.feed(b"tail\n{}")
    assert isinstance(line, TooLong)
    assert line.size == 1_000_004
    assert list(framer.finish()) == [b"{}"]


def test_the_id_of_an_overlong_request_is_found_first_or_last_but_never_inside() -> None:
    assert _id_of(TooLong(b'{"jsonrpc":"2.0","id":7,"method":"x"', b"", 9)) == 7
    assert _id_of(TooLong(b'{ "id" : "ab" , "method"', b"", 9)) == "ab"
    assert _id_of(TooLong(b'{"method":"x"', b'xxx"}},"jsonrpc":"2.0","id":12}', 9)) == 12
    assert _id_of(TooLong(b'{"method":"x","params":{"id":3', b'"}, "id": 3}}', 9)) is None
    assert _id_of(TooLong(b'{"method":"x"', b'"}', 9)) is None
