"""A certificate authority of one sandbox's own, with which the proxy opens the TLS of that sandbox alone.

The key is made here and never leaves this process: not into the sandbox, not onto a disk. The sandbox is shown the
certificate; nothing else in the world trusts it, and it dies with the agent.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.clock import Clock

VALID: Final = timedelta(days=366)
"""Of the authority: longer than an agent's process lives."""

LEAF_VALID: Final = timedelta(days=1)
"""Of a host's certificate; it is made anew when half of that is over."""

CLOCKS_DIFFER: Final = timedelta(hours=1)

MAX_HOSTS: Final = 256
"""Certificates kept; the one used longest ago makes room."""

MAX_COMMON_NAME: Final = 64
"""Characters (RFC 5280, appendix A.1). The name that counts stands in the certificate's extension."""


@dataclass(frozen=True)
class _Leaf:
    context: ssl.SSLContext
    renewed_at: datetime


class SandboxAuthority:
    """Certificates for whatever host the sandbox asks for. Importing this module and making one takes a while.

    Args:
        clock: wall time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = ec.generate_private_key(ec.SECP256R1())
        # One key serves all hosts: whoever had one of them would have had the process, and thereby all.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[str, _Leaf] = OrderedDict()
        self._certificate = self._sign_itself()

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def context_for(self, host: str) -> ssl.SSLContext:
        """TLS for a server of this name, HTTP/1.1 only."""
        now = self._clock.now()
        leaf = self._leaves.get(host)
        if leaf is None or now >= leaf.renewed_at:
            leaf = self._leaves[host] = _Leaf(self._make_context(host, now), now + LEAF_VALID / 2)
        self._leaves.move_to_end(host)
        while len(self._leaves) > MAX_HOSTS:
            self._leaves.popitem(last=False)
        return leaf.context

    def _make_context(self, host: str, now: datetime) -> ssl.SSLContext:
        certificate = self._sign_leaf(host, now)
        key = self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        with _readable(key + certificate.public_bytes(serialization.Encoding.PEM) + self.pem) as path:
            context.load_cert_chain(path)
        return context

    def _sign_itself(self) -> x509.Certificate:
        now, public = self._clock.now(), self._key.public_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Rookery authority of one sandbox")])
        return (
            _begun(name, name, public, now, VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _sign_leaf(self, host: str, now: datetime) -> x509.Certificate:
        public = self._leaf_key.public_key()
        # A name of a program's making may be too long for this field, which nothing reads any more.
        common = host if len(host) <= MAX_COMMON_NAME else "intercepted by Rookery"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        issuer = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            _begun(name, self._certificate.subject, public, now, LEAF_VALID)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _begun(
    name: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, valid: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + valid)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def _readable(content: bytes) -> Iterator[str]:
    """A path at which ``ssl``, which takes no bytes, can read them; in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rookery-certificate", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="rookery-") as directory:
        path = Path(directory) / "certificate.pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        yield str(path)
