"""Takes a request of a sandbox apart and builds the one that goes upstream from the parts (rows X04, X05, G01, G02).

Nothing is passed on as it came: path and query are looked up in a table, headers come from an allow-list, the body
is parsed JSON written anew. What a parser upstream might read differently therefore never gets there.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import anyio
import pydantic_core

from server.gateway.features import Feature, filter_body
from server.gateway.refusals import JSON, Cause, Refusal, forbidden, not_found, unauthorised
from server.requests import MODEL_NAME

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

MAX_BODY: Final = 32 * 1024 * 1024
"""Bytes of a request body: the Messages API's own limit."""

BODY_TIMEOUT_S: Final = 60.0
"""How long a sandbox may take to send its body; it comes over a Unix socket of this machine."""

MAX_BETAS: Final = 48
"""Entries of ``anthropic-beta`` that pass; the CLI sends about ten."""

USER_AGENT: Final = "rookery-gateway"


class Endpoint(StrEnum):
    """What the gateway serves, by its exact path."""

    MESSAGES = "/v1/messages"
    COUNT_TOKENS = "/v1/messages/count_tokens"
    MODELS = "/v1/models"


_METHODS: Final = {Endpoint.MESSAGES: "POST", Endpoint.COUNT_TOKENS: "POST", Endpoint.MODELS: "GET"}

_QUERIES: Final = frozenset({b"", b"beta=true"})

_BETA_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")

_BETA_DENIED: Final[tuple[tuple[str, Feature | None], ...]] = (
    ("web-search", Feature.WEB_SEARCH),
    ("web-fetch", Feature.WEB_FETCH),
    ("code-execution", Feature.CODE_EXECUTION),
    ("files-api", Feature.CODE_EXECUTION),
    ("skills", Feature.CODE_EXECUTION),
    ("mcp-", Feature.MCP_SERVERS),
    ("oauth-", None),
    ("oidc-", None),
    ("message-batches", None),
    ("message-threads", None),
    ("managed-agents", None),
    ("environments", None),
    ("agent-memory", None),
    ("dreaming", None),
    ("ccr-", None),
    ("user-profiles", None),
    ("advisor-tool", None),
    ("fast-mode", None),
    ("server-side-fallback", None),
    ("fallback-credit", None),
)
"""Betas that reach the network, files, containers, other accounts or other prices, with the feature that allows
them. Others pass: they change the form of a conversation only, and the CLI needs them."""

_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_RETRY_COUNT: Final = re.compile(r"\d{1,3}")


@dataclass(frozen=True)
class Inbound:
    """A request whose head was read and found in order."""

    endpoint: Endpoint
    query: bytes
    headers: dict[str, str]
    """The last value of each header (all of ``anthropic-beta``, which is a list), names in lower case."""


@dataclass(frozen=True)
class Outbound:
    """What goes upstream, without the credential."""

    endpoint: Endpoint
    query: str
    headers: dict[str, str]
    content: bytes
    body: dict[str, Any]
    """The parsed content; empty for a request without one."""
    model: str | None
    removed: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """``GET`` or ``POST``."""
        return _METHODS[self.endpoint]

    @property
    def max_tokens(self) -> int:
        """The output tokens asked for; 0 where none or nonsense is."""
        value = self.body.get("max_tokens")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    @property
    def streams(self) -> bool:
        """Whether the sandbox asked for a stream of events."""
        return self.body.get("stream") is True


def read_head(scope: Scope) -> Inbound:
    """Check method, path, query and headers of an ASGI request.

    Raises:
        Refusal: not one of the endpoints, written exactly so; or a head that could be read in two ways.
    """
    endpoint = next((one for one in Endpoint if scope.get("raw_path") == one.value.encode()), None)
    if endpoint is None or scope["method"] != _METHODS[endpoint]:
        raise not_found()
    query: bytes = scope.get("query_string", b"")
    if query not in _QUERIES and not (endpoint is Endpoint.MODELS and re.fullmatch(rb"[a-z_]+=[\w.-]+", query)):
        raise not_found()
    headers: dict[str, str] = {}
    raw: Sequence[tuple[bytes, bytes]] = scope["headers"]
    for name, value in raw:
        key = name.decode("latin-1").lower()
        if key in headers and key in ("content-length", "transfer-encoding", "host", "content-type"):
            raise forbidden("The request repeats a header that may come once only.")
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key == "anthropic-beta" and key in headers else text
    if "transfer-encoding" in headers and "content-length" in headers:
        raise forbidden("The request names its length in two ways.")
    if "upgrade" in headers:
        raise forbidden("This gateway does not change protocols.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise forbidden("This gateway takes plain bodies only: send without content-encoding.")
    return Inbound(endpoint, query, headers)


def token_of(headers: dict[str, str]) -> str:
    """The token of a request, from ``x-api-key`` or ``Authorization: Bearer``.

    Raises:
        Refusal: there is none.
    """
    token = headers.get("x-api-key", "").strip()
    if not token:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        token = value.strip() if scheme.lower() == "bearer" else ""
    if not token:
        raise unauthorised()
    return token


async def read_body(inbound: Inbound, receive: Receive, hold: Callable[[int], None], limit: int = MAX_BODY) -> bytes:
    """The whole body, bounded in size and time.

    Args:
        hold: told of bytes before they are kept; raises when there is no room for them.

    Raises:
        Refusal: it is too large or comes too slowly.
        anyio.EndOfStream: the sandbox went away.
    """
    too_large = forbidden(f"The request is larger than {limit // (1024 * 1024)} MB.")
    length = inbound.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise too_large
    announced = int(length)
    hold(announced)
    chunks: list[bytes] = []
    size = 0
    with anyio.move_on_after(BODY_TIMEOUT_S):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise anyio.EndOfStream
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise too_large
            if not announced:
                hold(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)
    raise Refusal(408, "timeout_error", "The request's body came too slowly.", cause=Cause.LOAD)


def build(inbound: Inbound, content: bytes, allowed: frozenset[str]) -> Outbound:
    """The request that goes upstream.

    Args:
        inbound: the checked head.
        content: the body as it came.
        allowed: features of the provider that the policy allows (:class:`~server.gateway.features.Feature`).

    Raises:
        Refusal: the body is no JSON object, or asks for what the policy does not allow.
    """
    query = inbound.query.decode("ascii")
    headers = _headers(inbound, allowed)
    if inbound.endpoint is Endpoint.MODELS:
        return Outbound(inbound.endpoint, query, headers, b"", {}, None)
    filtered = filter_body(_parse(content), allowed)
    model = filtered.body.get("model")
    if not isinstance(model, str) or not MODEL_NAME.fullmatch(model):
        raise forbidden("The request names no model, or not in a form that models are named in.")
    headers["content-type"] = JSON
    return Outbound(
        inbound.endpoint, query, headers, write_json(filtered.body), filtered.body, model, tuple(filtered.removed)
    )


def write_json(body: dict[str, Any]) -> bytes:
    """A body as compact UTF-8 JSON.

    Raises:
        Refusal: it is nested too deeply.
    """
    try:
        # Six times faster than the standard library's, which would be most of what a request costs here.
        return pydantic_core.to_json(body, inf_nan_mode="null")
    except pydantic_core.PydanticSerializationError:
        # Lone surrogates, which go on as the escapes they came as: the API decides about them. Or too deep a nesting.
        with contextlib.suppress(RecursionError, ValueError):
            return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    raise forbidden("The request's body is nested too deeply.")


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise forbidden("The request's body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise forbidden("The request's body is not a JSON object.")
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _headers(inbound: Inbound, allowed: frozenset[str]) -> dict[str, str]:
    version = inbound.headers.get("anthropic-version", "")
    headers = {
        "accept": JSON,
        # Plain bytes both ways: the meter reads what passes, and nothing can be blown up on the way.
        "accept-encoding": "identity",
        "anthropic-version": version if _VERSION.fullmatch(version) else "2023-06-01",
        "user-agent": USER_AGENT,
    }
    betas = filter_betas(inbound.headers.get("anthropic-beta", "").split(","), allowed)
    if betas:
        headers["anthropic-beta"] = ",".join(betas)
    retries = inbound.headers.get("x-stainless-retry-count", "")
    if _RETRY_COUNT.fullmatch(retries):
        headers["x-stainless-retry-count"] = retries
    return headers


def filter_betas(names: Iterable[str], allowed: frozenset[str]) -> list[str]:
    """Those names of ``anthropic-beta`` that are well formed and may pass, each once."""
    passed: dict[str, None] = {}
    for name in names:
        beta = name.strip()
        if not _BETA_NAME.fullmatch(beta) or len(passed) >= MAX_BETAS:
            continue
        if any(beta.startswith(prefix) and feature not in allowed for prefix, feature in _BETA_DENIED):
            continue
        passed[beta] = None
    return list(passed)
