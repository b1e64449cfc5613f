"""Reading the name out of a TLS greeting: what real clients send, in any pieces, and nothing that hides it."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.egress.failures import EgressRefusedError
from server.egress.hello import MAX_HELLO, server_name


def greeting(name: str | None) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def with_extension(kind: int, body: bytes, hello: bytes) -> bytes:
    """The same greeting with one more extension at the end, all lengths mended."""
    extension = kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body
    message = hello[9:]
    at = 2 + 32
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    block = message[at + 2 :] + extension
    message = message[:at] + len(block).to_bytes(2, "big") + block
    handshake = b"\x01" + len(message).to_bytes(3, "big") + message
    return b"\x16\x03\x01" + len(handshake).to_bytes(2, "big") + handshake


def test_the_name_that_openssl_asks_for_is_found() -> None:
    assert server_name(greeting("registry.example.com")) == "registry.example.com"


def test_the_name_is_found_as_soon_as_the_greeting_is_whole_and_not_before() -> None:
    whole = greeting("registry.example.com")
    for length in range(len(whole)):
        assert server_name(whole[:length]) is None
    assert server_name(whole + b"more") == "registry.example.com"


@given(st.lists(st.integers(min_value=1, max_value=200), min_size=1, max_size=12))
def test_the_name_is_found_in_a_greeting_that_comes_in_many_records(sizes: list[int]) -> None:
    handshake = greeting("registry.example.com")[5:]
    records = b""
    for size in [*sizes, len(handshake)]:
        piece, handshake = handshake[:size], handshake[size:]
        if piece:
            records += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
    assert server_name(records) == "registry.example.com"


def test_x12_a_greeting_without_a_name_is_refused() -> None:
    with pytest.raises(EgressRefusedError, match="name one server"):
        server_name(greeting(None))


def test_x12_a_greeting_that_hides_its_name_is_refused() -> None:
    with pytest.raises(EgressRefusedError, match="ECH"):
        server_name(with_extension(0xFE0D, b"\x00" * 40, greeting("front.example.com")))


def test_x12_a_greeting_with_two_names_is_refused() -> None:
    name = b"evil.example.com"
    entry = b"\x00" + len(name).to_bytes(2, "big") + name
    body = len(entry).to_bytes(2, "big") + entry
    with pytest.raises(EgressRefusedError, match="name one server"):
        server_name(with_extension(0, body, greeting("front.example.com")))


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", b"\x16\x02", b"\x16\x03\x01\x00\x05\x02"])
def test_x12_what_is_no_tls_is_refused_at_the_first_bytes(words: bytes) -> None:
    with pytest.raises(EgressRefusedError, match="TLS only"):
        server_name(words)


def test_x12_a_greeting_without_end_is_refused() -> None:
    with pytest.raises(EgressRefusedError, match="too long"):
        server_name(b"\x16\x03\x01\xff\xff\x01\xff\xff\xff" + b"x" * MAX_HELLO)


@given(st.binary(max_size=300))
def test_x12_no_bytes_crash_the_reader(data: bytes) -> None:
    for candidate in (data, b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data):
        try:
            server_name(candidate)
        except EgressRefusedError:
            continue


@given(st.integers(min_value=0), st.binary(min_size=1, max_size=3))
def test_x12_no_change_of_a_greeting_crashes_the_reader(place: int, change: bytes) -> None:
    hello = bytearray(greeting("registry.example.com"))
    at = place % len(hello)
    hello[at : at + len(change)] = change
    try:
        server_name(bytes(hello))
    except EgressRefusedError:
        return
