"""An OAuth issuer for tests, on the loopback: real keys, its metadata and its key set over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "https://agents.example/mcp"

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def new_key(kind: str = "RS256") -> Key:
    """A new private key for an algorithm."""
    if kind.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65_537, key_size=2048)


@dataclass
class Issuer:
    """An issuer with its keys.

    Args:
        url: its name.
        keys: key id → algorithm and private key.
    """

    url: str
    keys: dict[str, tuple[str, Key]] = field(default_factory=lambda: {"first": ("RS256", new_key())})
    asked: list[str] = field(default_factory=list)
    """Paths that were asked for."""

    def key_set(self) -> dict[str, Any]:
        found = []
        for key_id, (algorithm, key) in self.keys.items():
            public: Any = key.public_key()
            shown = (ECAlgorithm if algorithm.startswith("ES") else RSAAlgorithm).to_jwk(public, as_dict=True)
            found.append({**shown, "kid": key_id, "alg": algorithm, "use": "sig"})
        return {"keys": found}

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "scope": "openid agents:read agents:run",
            "iat": now,
            "exp": now + 300,
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key_id: str = "first", **changes: Any) -> str:
        algorithm, key = self.keys[key_id]
        return jwt.encode(self.claims(**changes), key, algorithm=algorithm, headers={"kid": key_id})


@contextmanager
def issuing() -> Iterator[Issuer]:
    """An issuer that answers."""
    issuer = Issuer("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            documents = {
                "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"},
                "/keys": issuer.key_set(),
            }
            body = json.dumps(documents.get(self.path, {})).encode()
            self.send_response(200 if self.path in documents else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
