"""Which certificates are trusted: by the proxy, of the servers outside, and by the programs in a sandbox."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from server.sandboxes.base import CONFIG_DIR

AUTHORITY_FILE: Final = "rookery-authority.pem"
"""In the sandbox's configuration directory: the certificate of the sandbox's own authority."""

AUTHORITIES_FILE: Final = "rookery-authorities.pem"
"""There too: that certificate and all that this machine trusts, for connections that are not opened need those."""

_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where systems keep the authorities that they trust in one file."""

TRUST_VARIABLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "SSL_CERT_FILE",
            "CURL_CA_BUNDLE",
            "REQUESTS_CA_BUNDLE",
            "PIP_CERT",
            "GIT_SSL_CAINFO",
            "CARGO_HTTP_CAINFO",
            "npm_config_cafile",
        ),
        f"{CONFIG_DIR}/{AUTHORITIES_FILE}",
    ),
    "NODE_EXTRA_CA_CERTS": f"{CONFIG_DIR}/{AUTHORITY_FILE}",
}
"""How programs in a sandbox find them. Each library has its own; npm's wins over the one of node."""


def trust_files(authority: bytes, more: bytes = b"") -> dict[str, bytes]:
    """The two files for a sandbox: path below its configuration directory → content.

    Args:
        authority: PEM of its own authority.
        more: PEM of authorities trusted beside the machine's.
    """
    return {AUTHORITY_FILE: authority, AUTHORITIES_FILE: b"\n".join((authority, more, machine_authorities()))}


def machine_authorities() -> bytes:
    """PEM of the authorities that this machine trusts; empty where no file of them is found."""
    named = ssl.get_default_verify_paths().cafile
    for place in (*((named,) if named else ()), *_BUNDLES):
        try:
            return Path(place).read_bytes()
        except OSError:
            continue
    return b""


def upstream_context(more: bytes) -> ssl.SSLContext:
    """TLS towards servers outside: certificate and name are checked, HTTP/1.1 only.

    Args:
        more: PEM of authorities trusted beside the machine's.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if more:
        context.load_verify_locations(cadata=more.decode("ascii"))
    return context
