"""Row X09 of the catalogue: rules on methods and paths inside TLS, which the proxy opens with the sandbox's own CA."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import anyio
import h11
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from cryptography import x509

from policies.hosts import Egress, HostRule, HostRules
from server.clock import Clock
from server.egress import EgressOptions, EgressOutlet
from server.egress.authority import SandboxAuthority
from tests.egress import PATIENCE_S, Authority, head_of, open_outlet, page, rules, serving, stand_ins

HOST = "good.example.com"
OTHER = "other.example.com"

GET_SIMPLE = Egress((HostRules((HostRule(HOST, methods=("GET", "HEAD"), paths=("/simple",), intercept=True),)),))


@dataclass
class Site:
    """A web server that keeps connections alive and remembers what it was asked."""

    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    hangs_up: bool = False
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

    async def serve(self, stream: ByteStream) -> None:
        self.connections += 1
        rest = b""
        while True:
            http = h11.Connection(h11.SERVER)
            if rest:
                http.receive_data(rest)
            seen = rest
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    seen += (data := await stream.receive())
                    http.receive_data(data)
            rest = bytes(http.trailing_data[0])
            self.heads.append(seen)
            await stream.send(self.answer)
            if self.hangs_up:
                return


@dataclass
class Scene:
    """An outlet before a site."""

    outlet: EgressOutlet
    port: int
    site: Site
    allowed: list[Egress]
    """What the policy lets out: the last one holds."""

    @asynccontextmanager
    async def tunnel(self, host: str = HOST, alpn: tuple[str, ...] = ()) -> AsyncIterator[TLSStream]:
        """What a program in the sandbox has: a tunnel, and TLS that trusts what the sandbox is told to trust."""
        files = await self.outlet.trust()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=files["rookery-authority.pem"].decode())
        if alpn:
            context.set_alpn_protocols(list(alpn))
        with anyio.fail_after(PATIENCE_S):
            async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
                await stream.send(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
                assert (await head_of(stream)).startswith(b"HTTP/1.1 200 ")
                async with await TLSStream.wrap(
                    stream, hostname=host, ssl_context=context, standard_compatible=False
                ) as secure:
                    yield secure

    async def ask(self, line: str, *headers: str, body: bytes = b"") -> bytes:
        """One request in a tunnel of its own; the answer."""
        async with self.tunnel() as secure:
            named = headers if any(one.lower().startswith("host:") for one in headers) else (f"Host: {HOST}", *headers)
            await secure.send("\r\n".join([line, *named, "Connection: close", "", ""]).encode() + body)
            return await rest_of(secure)


async def answered(stream: ByteStream) -> bool:
    """Read one of the site's answers, and leave the connection as it is."""
    answer = await head_of(stream)
    while not answer.endswith(b"hello"):
        answer += await stream.receive()
    return answer.startswith(b"HTTP/1.1 200 ")


async def rest_of(stream: ByteStream) -> bytes:
    answer = b""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            answer += await stream.receive()
    return answer


@asynccontextmanager
async def scene(
    allowed: Egress = GET_SIMPLE,
    *,
    site: Site | None = None,
    certified: str = HOST,
    options: Callable[[EgressOptions], EgressOptions] = lambda options: options,
) -> AsyncIterator[Scene]:
    authority, site, in_force = Authority(), site or Site(), [allowed]
    async with serving(site.serve, authority.server_context(certified)) as server:
        plain = stand_ins({HOST: server, OTHER: server})
        network = options(replace(plain, trust=authority.pem))
        async with open_outlet(allowed, network) as (outlet, port):
            outlet.allow(lambda: in_force[-1])
            yield Scene(outlet, port, site, in_force)


async def test_x09_methods_and_paths_are_judged_inside_tls() -> None:
    async with scene() as it:
        assert (await it.ask("GET /simple/x?a=/../b HTTP/1.1")).endswith(b"hello")
        assert (await it.ask("HEAD /simple HTTP/1.1")).startswith(b"HTTP/1.1 200 ")
        for line in ("POST /simple/x", "get /simple/x", "GET /", "GET /simplex", "GET /simple/../y", "PATCH /simple"):
            answer = await it.ask(f"{line} HTTP/1.1")
            assert answer.startswith(b"HTTP/1.1 403 Refused by the policy"), line
            assert b"the policy does not allow it" in answer
        assert [head.split(b" HTTP")[0] for head in it.site.heads] == [b"GET /simple/x?a=/../b", b"HEAD /simple"]


async def test_one_tunnel_carries_many_requests_over_one_connection_until_one_is_refused() -> None:
    async with scene() as it, it.tunnel() as secure:
        for _ in range(3):
            await secure.send(f"GET /simple HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert await answered(secure)
        await secure.send(f"DELETE /simple HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert (await rest_of(secure)).startswith(b"HTTP/1.1 403 ")
        assert (len(it.site.heads), it.site.connections) == (3, 1)


async def test_x09_two_requests_sent_at_once_are_judged_one_by_one() -> None:
    async with scene() as it, it.tunnel() as secure:
        both = f"GET /simple HTTP/1.1\r\nHost: {HOST}\r\n\r\nPOST /evil HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        await secure.send(both.encode())
        answer = await rest_of(secure)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 403 " in answer
        assert len(it.site.heads) == 1


async def test_a_server_that_hangs_up_ends_the_tunnel() -> None:
    async with scene(site=Site(hangs_up=True)) as it, it.tunnel() as secure:
        await secure.send(f"GET /simple HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert (await rest_of(secure)).endswith(b"hello")


async def test_x11_a_redirect_goes_back_to_the_program_whose_next_request_is_judged() -> None:
    away = page(b"", "302 Found", "Location: https://evil.example.com/")
    async with scene(site=Site(answer=away, hangs_up=True)) as it:
        answer = await it.ask("GET /simple HTTP/1.1")
        assert b"location: https://evil.example.com/" in answer.lower()
        assert len(it.site.heads) == 1
        with pytest.raises(AssertionError):
            async with it.tunnel("evil.example.com"):
                pytest.fail("the policy does not name it")


@pytest.mark.parametrize("certified", [OTHER, f"www.{HOST}"])
async def test_a_server_with_another_name_in_its_certificate_gets_no_request(certified: str) -> None:
    async with scene(certified=certified) as it:
        answer = await it.ask("GET /simple HTTP/1.1")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"is not valid" in answer
        assert not it.site.heads


async def test_a_server_whose_authority_nobody_knows_gets_no_request() -> None:
    async with scene(options=lambda options: replace(options, trust=b"")) as it:
        assert (await it.ask("GET /simple HTTP/1.1")).startswith(b"HTTP/1.1 502 ")
        assert not it.site.heads


async def test_x11_an_opened_tunnel_leads_to_no_private_address() -> None:
    async def private(host: str, port: int) -> list[str]:
        return ["10.0.0.7"]

    async with scene(options=lambda options: EgressOptions(private, trust=options.trust)) as it:
        answer = await it.ask("GET /simple HTTP/1.1")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"not public" in answer


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("GET /simple HTTP/1.1", OTHER),
        ("GET /simple HTTP/1.1", f"{HOST}:80"),
        ("GET /simple HTTP/1.1", f"{HOST}@{OTHER}"),
        (f"GET https://{OTHER}/simple HTTP/1.1", HOST),
        (f"GET http://{HOST}/simple HTTP/1.1", HOST),
        ("OPTIONS * HTTP/1.1", HOST),
        (f"CONNECT {OTHER}:443 HTTP/1.1", HOST),
        ("GET //simple HTTP/1.1", HOST),
        ("GET /simple#x HTTP/1.1", HOST),
    ],
)
async def test_x12_a_request_inside_names_a_path_of_its_own_host_only(line: str, host: str) -> None:
    async with scene() as it:
        answer = await it.ask(line, f"Host: {host}")
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))
        assert not it.site.heads


async def test_g01_a_request_is_written_anew_so_that_no_server_sees_another_in_it() -> None:
    anything = Egress((HostRules((HostRule(HOST, methods=("POST",), intercept=True),)),))
    hidden = b"0\r\n\r\nDELETE /all HTTP/1.1\r\nHost: x\r\n\r\n"
    async with scene(anything) as it:
        await it.ask(
            "POST /a HTTP/1.1",
            f"Content-Length: {len(hidden)}",
            "Transfer-Encoding: chunked",
            "X-HTTP-Method-Override: DELETE",
            "X_HTTP_Method_Override: DELETE",
            "X-Original-URL: /all",
            "X-Rewrite-Url: /all",
            "Upgrade: h2c",
            "Kept: yes",
            body=hidden,
        )
        (head,) = it.site.heads
        lines = {line.split(b":")[0] for line in head.lower().split(b"\r\n\r\n")[0].split(b"\r\n")[1:]}
        assert lines == {b"host", b"kept", b"transfer-encoding"}


async def test_a_tightened_policy_holds_for_the_next_request_of_an_open_tunnel() -> None:
    async with scene() as it, it.tunnel() as secure:
        await secure.send(f"GET /simple HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert await answered(secure)
        it.allowed.append(rules(OTHER))
        await secure.send(f"GET /simple HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert (await rest_of(secure)).startswith(b"HTTP/1.1 403 ")
        assert len(it.site.heads) == 1


@pytest.mark.parametrize("then", [rules(OTHER), GET_SIMPLE])
async def test_a_tightened_policy_cuts_a_tunnel_that_it_would_not_let_through_as_it_is(then: Egress) -> None:
    authority, site, allowed = Authority(), Site(), [rules(HOST)]
    async with (
        serving(site.serve, authority.server_context(HOST)) as server,
        open_outlet(allowed[0], stand_ins({HOST: server})) as (outlet, port),
    ):
        outlet.allow(lambda: allowed[-1])
        with anyio.fail_after(PATIENCE_S):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                await head_of(stream)
                secure = await TLSStream.wrap(
                    stream, hostname=HOST, ssl_context=authority.client_context(), standard_compatible=False
                )
                await secure.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                await head_of(secure)
                allowed.append(then)
                await secure.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                with suppress(ssl.SSLError):
                    assert await rest_of(secure) == b""
        assert len(site.heads) == 1


async def test_r23_nothing_passes_while_the_rules_cannot_be_read() -> None:
    def broken() -> Egress:
        raise ValueError("a fault of ours")

    async with scene() as it:
        it.outlet.allow(broken)
        with pytest.raises(AssertionError):
            async with it.tunnel():
                pytest.fail("a tunnel without rules")


async def test_a_program_that_trusts_others_only_gets_nothing_and_the_session_hears_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.egress.journal.GATHER_S", 0.01)
    told: list[str] = []
    heard = anyio.Event()

    async def report(text: str) -> None:
        told.append(text)
        heard.set()

    async with scene() as it, await anyio.connect_tcp("127.0.0.1", it.port) as stream:
        it.outlet.allow(lambda: GET_SIMPLE, report)
        await stream.send(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        await head_of(stream)
        with pytest.raises(ssl.SSLCertVerificationError):
            await TLSStream.wrap(stream, hostname=HOST, ssl_context=Authority().client_context())
        await stream.aclose()
        with anyio.fail_after(PATIENCE_S):
            await heard.wait()
        assert f"refused {HOST}:443 (the program does not trust" in told[0]
        assert not it.site.heads


async def test_a_program_that_would_speak_http_2_is_given_http_1() -> None:
    async with scene() as it, it.tunnel(alpn=("h2", "http/1.1")) as secure:
        assert secure.extra(TLSAttribute.alpn_protocol) == "http/1.1"


async def test_x02_the_sandbox_is_shown_certificates_and_no_key() -> None:
    async with scene() as it, scene() as another:
        files = await it.outlet.trust()
        for content in files.values():
            assert b"PRIVATE" not in content
        x509.load_pem_x509_certificate(files["rookery-authority.pem"])
        assert files["rookery-authorities.pem"].startswith(files["rookery-authority.pem"])
        # Each sandbox has an authority of its own, which no other trusts.
        assert files["rookery-authority.pem"] != (await another.outlet.trust())["rookery-authority.pem"]


class Later(Clock):
    """A clock that a test moves."""

    ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + Later.ahead


def test_certificates_are_kept_for_a_while_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = SandboxAuthority(Later())
    first = authority.context_for(HOST)
    assert authority.context_for(HOST) is first
    monkeypatch.setattr(Later, "ahead", timedelta(hours=13))
    second = authority.context_for(HOST)
    assert second is not first
    monkeypatch.setattr("server.egress.authority.MAX_HOSTS", 2)
    for number in range(2):
        authority.context_for(f"h{number}.example.com")
    assert authority.context_for(HOST) is not second


async def test_a_very_long_name_has_a_certificate_too() -> None:
    long = ".".join(["a" * 60] * 4) + ".example"
    opened = Egress((HostRules((HostRule(long, intercept=True),)),))
    async with (
        scene(opened, options=lambda options: replace(options, loopback={long: 1})) as it,
        it.tunnel(long) as secure,
    ):
        await secure.send(f"GET / HTTP/1.1\r\nHost: {long}\r\n\r\n".encode())
        assert (await rest_of(secure)).startswith(b"HTTP/1.1 502 ")
