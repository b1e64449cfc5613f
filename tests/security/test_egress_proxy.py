"""Rows X10 to X12 of the catalogue against the egress proxy: raw bytes from inside, servers of our own outside."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.hosts import Egress, HostError, HostRule, HostRules, parse_host
from server.egress import Bounds, EgressOptions
from server.egress.addresses import is_public
from server.egress.failures import MalformedRequestError
from server.egress.targets import absolute_target, connect_target
from tests.egress import PATIENCE_S, Authority, ask, head_of, open_outlet, page, rules, serving, stand_ins

HOST = "good.example.com"


class Recorder:
    """A web server that remembers what it was asked."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def answer(self, stream: ByteStream) -> None:
        self.heads.append(await head_of(stream))
        await stream.send(page(b"hello"))


@asynccontextmanager
async def proxied(
    allowed: Egress, context: ssl.SSLContext | None = None, names: Sequence[str] = (HOST,)
) -> AsyncIterator[tuple[int, Recorder]]:
    """An outlet before a server that all the names lead to; the outlet's port, and what the server saw."""
    recorder = Recorder()
    async with (
        serving(recorder.answer, context) as server,
        open_outlet(allowed, stand_ins(dict.fromkeys(names, server))) as (_, port),
    ):
        yield port, recorder


async def fetch_tls(port: int, tunnel: str, asked: str, authority: Authority) -> bytes:
    """What a TLS client gets that opens a tunnel to one name and asks for another."""
    with anyio.fail_after(PATIENCE_S):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(f"CONNECT {tunnel} HTTP/1.1\r\nHost: {tunnel}\r\n\r\n".encode())
            answer = await head_of(stream)
            if not answer.startswith(b"HTTP/1.1 200 "):
                return answer
            async with await TLSStream.wrap(
                stream, hostname=asked, ssl_context=authority.client_context(), standard_compatible=False
            ) as secure:
                await secure.send(f"GET / HTTP/1.1\r\nHost: {asked}\r\n\r\n".encode())
                answer = b""
                with suppress(anyio.EndOfStream):
                    while True:
                        answer += await secure.receive()
                return answer


async def test_an_allowed_host_is_reached_by_both_verbs() -> None:
    authority = Authority()
    async with proxied(rules(HOST), authority.server_context(HOST)) as (port, _):
        assert (await fetch_tls(port, f"{HOST}:443", HOST, authority)).endswith(b"hello")
    async with proxied(rules(HOST)) as (port, recorder):
        answer = await ask(port, f"GET http://{HOST}/a?b=c HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"hello")
        assert recorder.heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\nhost: good.example.com\r\n")


@pytest.mark.parametrize("request_line", [f"CONNECT {HOST}:443", f"GET http://{HOST}/"])
async def test_x12_an_outlet_without_rules_lets_nothing_through(request_line: str) -> None:
    for nothing in (Egress(()), Egress((HostRules(),)), Egress((*rules(HOST).layers, HostRules()))):
        async with proxied(nothing) as (port, recorder):
            answer = await ask(port, f"{request_line} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert not recorder.heads


@pytest.mark.parametrize("verb", ["CONNECT {}:443", "GET http://{}/", "POST http://{}/", "OPTIONS http://{}/"])
async def test_x12_both_verbs_refuse_what_the_policy_does_not_name(verb: str) -> None:
    async with proxied(rules(HOST), names=("other.example.com",)) as (port, recorder):
        line = verb.format("other.example.com")
        answer = await ask(port, f"{line} HTTP/1.1\r\nHost: other.example.com\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"the policy does not allow it" in answer
        assert not recorder.heads


TRICKS = [
    "good.example.com.evil.com",
    "evil.com\x00.good.example.com",
    "evil.com%00.good.example.com",
    "evilgood.example.com",
    "good.example.com@evil.com",
    "evil.com#good.example.com",
    "evil.com?good.example.com",
    "evil.com\\good.example.com",
    "evil.com:443@good.example.com",
    "good.example.com..",
    "good.example.com%2e",
    "good。example.com",  # an ideographic full stop, which IDNA reads as a dot
    "xn--good-.example.com",
    "example.com",
    "sub.good.example.com",
    "93.184.215.14",
    "1572395022",
    "0x5db8d70e",
    "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]",
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("verb", ["CONNECT {}:443", "GET http://{}/"])
async def test_x10_a_name_that_only_looks_like_an_allowed_one_is_refused(trick: str, verb: str) -> None:
    names = (HOST, "evil.com", "example.com", "sub.good.example.com", "good.example.com.evil.com")
    async with proxied(rules(HOST), names=names) as (port, recorder):
        request = f"{verb.format(trick)} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        answer = await ask(port, request)
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
        assert not recorder.heads


@pytest.mark.parametrize("spelling", ["GOOD.example.COM", "good.example.com."])
async def test_x10_case_and_a_trailing_dot_change_nothing(spelling: str) -> None:
    async with proxied(rules(HOST)) as (port, recorder):
        answer = await ask(port, f"GET http://{spelling}/ HTTP/1.1\r\nHost: {spelling}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nhost: good.example.com\r\n" in recorder.heads[0]


async def test_x10_a_subdomain_rule_covers_labels_below_and_not_the_name_itself() -> None:
    names = ("a.example.com", "example.com", "aexample.com")
    async with proxied(rules("*.example.com"), names=names) as (port, recorder):
        for host, status in (("a.example.com", b"200"), ("example.com", b"403"), ("aexample.com", b"403")):
            answer = await ask(port, f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 " + status)
        assert len(recorder.heads) == 1


@pytest.mark.parametrize("port", [22, 25, 80, 8443, 0, 65_536, 99_999])
async def test_x10_another_port_than_the_rules_is_refused(port: int) -> None:
    async with proxied(rules(HOST, ports=(443,))) as (outlet, recorder):
        answer = await ask(outlet, f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
        assert not recorder.heads


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.from_regex(r"[a-zA-Z0-9.@:\[\]%\\/#?_-]{1,40}", fullmatch=True),
        st.sampled_from(TRICKS),
    ),
    st.sampled_from(["{}:443", "{}", "http://{}/", "http://{}:80", "https://{}/", "http://x@{}/"]),
)
def test_x10_what_the_proxy_reads_as_a_host_is_just_what_the_policy_judges(text: str, form: str) -> None:
    """A target that is read at all has one canonical name, which parses to itself: there is no second reading."""
    for read in (connect_target, absolute_target):
        try:
            target = read(form.format(text))
        except MalformedRequestError:
            continue
        assert parse_host(target.host) == target.host
        assert target.host.isascii()
        assert 0 < target.port < 65_536
        assert form.format(text).lower().removeprefix("http://").startswith(target.host)


@settings(max_examples=300, deadline=None)
@given(st.from_regex(r"([a-z0-9-]{1,8}\.){0,3}(good\.example\.com|example\.com|com)", fullmatch=True), st.booleans())
def test_x10_a_host_passes_only_if_its_labels_are_those_of_the_rule(host: str, below: bool) -> None:
    allowed = rules("*.good.example.com" if below else HOST)
    labels = host.split(".")
    expected = labels[-3:] == HOST.split(".") and (len(labels) > 3) is below
    try:
        parse_host(host)
    except HostError:
        expected = False
    try:
        target = connect_target(f"{host}:443")
    except MalformedRequestError:
        assert not expected
        return
    assert allowed.permits(target.host, target.port) is expected


SPECIAL = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "fec0::1",
    "nonsense",
    "",
]


@pytest.mark.parametrize("address", SPECIAL)
async def test_x11_an_allowed_name_that_leads_to_a_special_address_is_refused(address: str) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return ["93.184.215.14", address]

    async with open_outlet(rules(HOST), EgressOptions(lookup=lookup)) as (_, port):
        for line in (f"CONNECT {HOST}:443", f"GET http://{HOST}/"):
            answer = await ask(port, f"{line} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"not public" in answer
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_x11_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


async def test_x11_the_address_that_was_judged_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: the second answer of the name server would be loopback, but nobody asks a second time."""
    answers = [["93.184.215.14"], ["127.0.0.1"]]
    dialled: list[str] = []

    async def lookup(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async def connect(host: str, port: int) -> None:
        dialled.append(host)
        raise ConnectionRefusedError

    async with open_outlet(rules(HOST), EgressOptions(lookup=lookup)) as (_, port):
        request = f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            monkeypatch.setattr("server.egress.dialing.anyio.connect_tcp", connect)
            await stream.send(request)
            with anyio.fail_after(PATIENCE_S):
                assert (await head_of(stream)).startswith(b"HTTP/1.1 502 ")
    assert dialled == ["93.184.215.14"]
    assert answers == [["127.0.0.1"]]


async def test_x11_a_redirect_is_the_clients_matter_and_its_next_hop_is_judged_again() -> None:
    async def redirect(stream: ByteStream) -> None:
        await head_of(stream)
        await stream.send(page(b"", "302 Found", "Location: http://127.0.0.1:80/secret"))

    async with serving(redirect) as server, open_outlet(rules(HOST), stand_ins({HOST: server})) as (_, port):
        answer = await ask(port, f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 302 ")
        answer = await ask(port, b"GET http://127.0.0.1:80/secret HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_x12_a_tunnel_to_one_name_with_tls_for_another_is_cut() -> None:
    authority = Authority()
    context = authority.server_context(HOST, "front.example.com")
    async with proxied(rules("front.example.com"), context, names=("front.example.com", HOST)) as (port, recorder):
        with pytest.raises((ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream)):
            await fetch_tls(port, "front.example.com:443", HOST, authority)
        assert not recorder.heads


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"\x16\x02\x00"])
async def test_x12_a_tunnel_that_carries_no_tls_is_cut(words: bytes) -> None:
    async with proxied(rules(HOST)) as (port, recorder):
        answer = await ask(port, f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() + words)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"hello" not in answer
        assert not recorder.heads


async def test_x12_a_tunnel_whose_client_says_nothing_is_cut() -> None:
    options = stand_ins({HOST: 9})
    async with serving(Recorder().answer) as server:
        options = EgressOptions(options.lookup, Bounds(head_s=0.2), {HOST: server})
        async with open_outlet(rules(HOST), options) as (_, port):
            answer = await ask(port, f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("header", ["Host: evil.com", f"Host: {HOST}:8080", f"Host: {HOST}, evil.com", "Host: "])
async def test_x12_a_host_header_that_differs_from_the_url_is_refused(header: str) -> None:
    async with proxied(rules(HOST)) as (port, recorder):
        answer = await ask(port, f"GET http://{HOST}/ HTTP/1.1\r\n{header}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert not recorder.heads


async def test_x12_a_second_request_on_the_connection_does_not_reach_the_server() -> None:
    async with proxied(rules(HOST)) as (port, recorder):
        first = f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        second = f"GET http://{HOST}/smuggled HTTP/1.1\r\nHost: evil.com\r\n\r\n"
        assert (await ask(port, (first + second).encode())).count(b"HTTP/1.1 ") == 1
        assert len(recorder.heads) == 1
        assert b"smuggled" not in recorder.heads[0]


async def test_headers_for_the_proxy_alone_do_not_reach_the_server() -> None:
    async with proxied(rules(HOST)) as (port, recorder):
        lines = [
            f"GET http://{HOST}/ HTTP/1.1",
            f"Host: {HOST}",
            "Proxy-Authorization: Basic c2VjcmV0",
            "Proxy-Connection: keep-alive",
            "Connection: upgrade, x-private",
            "Upgrade: h2c",
            "X-Private: 1",
            "X-Public: 2",
        ]
        await ask(port, "\r\n".join([*lines, "", ""]).encode())
        head = recorder.heads[0].lower()
        assert b"x-public: 2" in head
        assert b"connection: close" in head
        for name in (b"proxy-", b"upgrade", b"x-private"):
            assert name not in head


async def test_a_body_is_carried_in_both_framings() -> None:
    bodies: list[bytes] = []

    async def echo(stream: ByteStream) -> None:
        data = await head_of(stream)
        while not data.endswith((b"0\r\n\r\n", b"end")):
            data += await stream.receive()
        bodies.append(data.split(b"\r\n\r\n", 1)[1])
        await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    async with serving(echo) as server, open_outlet(rules(HOST), stand_ins({HOST: server})) as (_, port):
        start = f"POST http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n"
        await ask(port, f"{start}Content-Length: 8\r\n\r\nbody end".encode())
        answer = await ask(port, f"{start}Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n".encode())
    assert bodies == [b"body end", b"4\r\nbody\r\n0\r\n\r\n"]
    assert b"ok" in answer


async def test_methods_and_paths_of_plain_http_are_judged() -> None:
    layer = HostRules((HostRule(HOST, ports=(80,), methods=("GET",), paths=("/simple",), intercept=True),))
    async with proxied(Egress((layer,))) as (port, recorder):
        for line, status in (("GET {}/simple/x", 200), ("POST {}/simple/x", 403), ("GET {}/simple/../y", 403)):
            request = f"{line.format(f'http://{HOST}')} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
            assert (await ask(port, request.encode())).startswith(f"HTTP/1.1 {status} ".encode())
        assert len(recorder.heads) == 1


async def test_connections_beyond_the_bound_wait_for_a_place() -> None:
    recorder = Recorder()
    async with serving(recorder.answer) as server:
        options = EgressOptions(stand_ins({}).lookup, Bounds(connections=1), {HOST: server})
        async with open_outlet(rules(HOST), options) as (_, port):
            holder = await anyio.connect_tcp("127.0.0.1", port)
            async with anyio.create_task_group() as tasks:
                answers: list[bytes] = []

                async def second() -> None:
                    answers.append(await ask(port, f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()))

                tasks.start_soon(second)
                await anyio.wait_all_tasks_blocked()
                assert not answers
                await holder.aclose()
            assert answers[0].startswith(b"HTTP/1.1 200 ")


async def test_an_idle_connection_and_too_many_bytes_end() -> None:
    async def flood(stream: ByteStream) -> None:
        await head_of(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 50_000)
        await anyio.sleep_forever()

    async with serving(flood) as server:
        for bounds in (Bounds(idle_s=0.3), Bounds(bytes=10_000)):
            options = EgressOptions(stand_ins({}).lookup, bounds, {HOST: server})
            async with open_outlet(rules(HOST), options) as (_, port):
                answer = await ask(port, f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                assert len(answer) < 60_000


async def test_a_closed_outlet_ends_its_connections_and_takes_no_more() -> None:
    async with serving(Recorder().answer) as server, open_outlet(rules(HOST), stand_ins({HOST: server})) as (out, port):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            out.close()
            with anyio.fail_after(PATIENCE_S), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
        with pytest.raises(OSError, match="failed"):
            await anyio.connect_tcp("127.0.0.1", port)


async def test_decisions_are_told_in_few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.egress.journal.GATHER_S", 0.05)
    told: list[str] = []
    heard = anyio.Event()

    async def report(text: str) -> None:
        told.append(text)
        heard.set()

    async with serving(Recorder().answer) as server, open_outlet(rules(HOST), stand_ins({HOST: server})) as (out, port):
        out.allow(lambda: rules(HOST), report)
        async with anyio.create_task_group() as tasks:
            for host in [HOST] * 3 + [f"h{number}.evil.com" for number in range(40)]:
                tasks.start_soon(ask, port, f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        with anyio.fail_after(PATIENCE_S):
            await heard.wait()
    lines = "\n".join(told).splitlines()
    assert any(line.startswith(f"Network: allowed {HOST}:80") for line in lines)
    assert any("refused h" in line and "the policy does not allow it" in line for line in lines)
    assert len(lines) < 43
