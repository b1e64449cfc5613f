"""The seam to whatever answers as the model: Anthropic's API, a company's gateway, or the scripted stand-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import structlog

from server.errors import ErrorCode, RookeryError
from server.gateway.client import UpstreamClient, open_client

if TYPE_CHECKING:
    from pydantic import SecretStr

    from server.settings import Settings

OAUTH_BETA: Final = "oauth-2025-04-20"
"""The beta under which the Messages API takes an OAuth token of Claude Code."""

_VARIABLES: Final = ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")

CREDENTIAL_VARIABLES: Final = "ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN or CLAUDE_CODE_OAUTH_TOKEN"


@dataclass(frozen=True)
class Credential:
    """What the gateway alone knows: the header that pays."""

    header: str
    value: str = field(repr=False)
    secret: str = field(repr=False)
    """The bare secret, so that it can be struck out of texts."""
    beta: str | None = None
    """A beta that must accompany it."""

    def redact(self, text: str) -> str:
        """``text`` without the secret."""
        return text.replace(self.secret, "[redacted]") if self.secret else text


_log = structlog.get_logger(__name__)

CredentialSupplier = Callable[[], Credential | None]
"""Asked anew for each request, so that a rotated credential is used from the next request on; must not block."""


def no_credential() -> Credential | None:
    """For an upstream that asks for none."""
    return None


@dataclass(frozen=True)
class Upstream:
    """Where model requests go.

    Args:
        base_url: scheme, host and an optional path prefix; ``/v1/messages`` is appended.
        credential: supplies what is added to each request.
        needs_credential: refuse requests while the supplier has none.
        socket: Unix socket to connect to instead of the host of ``base_url``.
        trust_env: use the proxies and certificates that the environment names (``HTTPS_PROXY``, ``SSL_CERT_FILE``):
            it is the operator's own environment, and companies need it. It never adds credentials.
    """

    base_url: str
    credential: CredentialSupplier = no_credential
    needs_credential: bool = False
    socket: Path | None = None
    trust_env: bool = True

    def url(self, path: str, query: str = "") -> str:
        """The address of an endpoint."""
        address = self.base_url.rstrip("/") + path
        return f"{address}?{query}" if query else address

    def client(self) -> AbstractAsyncContextManager[UpstreamClient]:
        """Opens a client for this upstream; see :func:`~server.gateway.client.open_client`."""
        return open_client(self.base_url, self.socket, trust_env=self.trust_env)


def anthropic_upstream(settings: Settings) -> Upstream:
    """Anthropic's API, or the gateway that ``ANTHROPIC_BASE_URL`` names.

    Raises:
        RookeryError: ``invalid_argument`` when the base URL is no http(s) address, or would carry a credential itself.
    """
    parts = urlsplit(settings.anthropic_base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "ANTHROPIC_BASE_URL is not an http or https address: mend it.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            "ANTHROPIC_BASE_URL holds a user, password, query or fragment: "
            f"give the bare address, and the credential in {CREDENTIAL_VARIABLES}.",
        )
    supplier: CredentialSupplier = lambda: credential_of(settings)  # noqa: E731 - one of two of the same kind
    if settings.credential_file is not None:
        supplier = CredentialFile(settings.credential_file, otherwise=supplier)
    return Upstream(base_url=settings.anthropic_base_url, credential=supplier, needs_credential=True)


class CredentialFile:
    """Supplies the credential that a file holds, and reads it again when it changed: for keys that are rotated.

    The file has lines as ``ANTHROPIC_API_KEY=…``, with the names of the variables. While it is missing, unreadable or
    without a credential, ``otherwise`` is asked.
    """

    def __init__(self, path: Path, otherwise: CredentialSupplier) -> None:
        self._path = path
        self._otherwise = otherwise
        self._seen: tuple[int, int, int] | None = None
        self._credential: Credential | None = None

    def __call__(self) -> Credential | None:
        """The present credential."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._credential = _credential_in(self._path.read_text())
                self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("credential_file_unreadable", error=type(error).__name__)
            self._credential, self._seen = None, None
        return self._credential or self._otherwise()


def _credential_in(text: str) -> Credential | None:
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("\"'")
    return _credential(*(values.get(name, "") for name in _VARIABLES))


def credential_of(settings: Settings) -> Credential | None:
    """The credential that the settings name; None without."""
    given = (settings.anthropic_auth_token, settings.anthropic_api_key, settings.claude_code_oauth_token)
    return _credential(*(_secret(value) for value in given))


def _credential(auth_token: str, api_key: str, oauth_token: str) -> Credential | None:
    """The one that is given, in the order in which Claude Code itself prefers them."""
    if auth_token:
        return Credential("authorization", f"Bearer {auth_token}", auth_token)
    if api_key:
        return Credential("x-api-key", api_key, api_key)
    if oauth_token:
        return Credential("authorization", f"Bearer {oauth_token}", oauth_token, beta=OAUTH_BETA)
    return None


def _secret(value: SecretStr | None) -> str:
    return value.get_secret_value().strip() if value is not None else ""


def headers_with(credential: Credential | None, headers: Mapping[str, str]) -> dict[str, str]:
    """``headers`` with the credential added; whatever was there under its names is gone."""
    result = {name: value for name, value in headers.items() if name not in ("authorization", "x-api-key")}
    if credential is None:
        return result
    result[credential.header] = credential.value
    if credential.beta is not None:
        betas = [beta for beta in result.get("anthropic-beta", "").split(",") if beta]
        result["anthropic-beta"] = ",".join([*betas, credential.beta])
    return result
