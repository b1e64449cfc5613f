"""The network for tests of egress: names that stand for servers on this machine's loopback, with TLS of our own."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from policies.hosts import Egress, HostRule, HostRules
from server.concurrency import background_tasks
from server.egress import EgressOptions, EgressOutlet, EgressProxy
from server.gateway.listener import loopback_listener

PATIENCE_S: Final = 20.0

Answer = Callable[[ByteStream], Awaitable[None]]
"""Speaks with one client of a server."""


class Authority:
    """A certificate authority that exists for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        self._certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def server_context(self, *hosts: str) -> ssl.SSLContext:
        """TLS for a server with a certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        certificate = self._sign(name, key.public_key(), hosts=hosts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "server.pem"
            path.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
                + certificate.public_bytes(serialization.Encoding.PEM)
            )
            context.load_cert_chain(path)
        return context

    def client_context(self) -> ssl.SSLContext:
        """TLS for a client that trusts this authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode())
        return context

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        hosts: tuple[str, ...] = (),
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if hosts:
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on loopback; its port."""

    async def handle(stream: SocketStream) -> None:
        try:
            async with stream:
                if context is None:
                    await answer(stream)
                    return
                async with await TLSStream.wrap(
                    stream, server_side=True, ssl_context=context, standard_compatible=False
                ) as secure:
                    await answer(secure)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, ssl.SSLError):
            # Clients of these tests hang up as they like.
            return

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, background_tasks() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield int(listener.extra(SocketAttribute.local_port))


async def head_of(stream: ByteStream) -> bytes:
    """A request's or answer's head, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    return data


def page(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def rules(*hosts: str, ports: tuple[int, ...] = (80, 443)) -> Egress:
    """What a policy with these host patterns lets out."""
    return Egress((HostRules(tuple(HostRule(host, ports=ports) for host in hosts)),))


@asynccontextmanager
async def open_outlet(allowed: Egress, options: EgressOptions) -> AsyncIterator[tuple[EgressOutlet, int]]:
    """An outlet that serves a listener of this machine; the outlet and the port."""
    async with background_tasks() as tasks:
        outlet = EgressProxy(tasks, options).open()
        outlet.allow(lambda: allowed)
        listener = loopback_listener()
        port = int(listener.getsockname()[1])
        outlet.serve(listener)
        try:
            yield outlet, port
        finally:
            outlet.close()


def stand_ins(ports: Mapping[str, int]) -> EgressOptions:
    """Names that lead to ports of this machine; no other name can be resolved."""

    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError(f"{host}:{port} is not of these tests")

    return EgressOptions(lookup=nowhere, loopback=dict(ports))


async def ask(port: int, request: bytes) -> bytes:
    """Send bytes to a port and read the answer to its end."""
    with anyio.fail_after(PATIENCE_S):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request)
            answer = b""
            try:
                while True:
                    answer += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return answer
