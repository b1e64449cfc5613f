"""Resources: sessions, their transcripts, files and changes, for clients that attach documents to a conversation.

Each has a tool that does the same (``get_session``, ``read_transcript``, ``read_file``, ``export_changes``), since
several clients show no resources. The list holds the sessions, newest first; it and they can be subscribed to.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, ListResourcesResult, PaginatedRequestParams, Resource

from server.callers import Caller, Scope
from server.errors import ErrorCode, RookeryError
from server.requests import ListRequest
from tools.addresses import FILE, MAX_RESOURCE_BYTES, PATCH, SESSION, TRANSCRIPT
from tools.cleaning import guarded_json
from tools.errors import as_rookery_error
from tools.next_steps import guided_view
from tools.offer import Offer
from tools.tool_server import ToolServer

_LISTED: Final = 100
"""Sessions in one page of the list."""

_PAGE: Final = 500
"""Events fetched at once."""

_PART: Final = 1 << 20
"""Bytes of a file fetched at once."""

_CURSOR_DIGITS: Final = 16
"""More than any cursor has."""

_MISSING: Final = frozenset({ErrorCode.SESSION_NOT_FOUND, ErrorCode.CHECKPOINT_NOT_FOUND, ErrorCode.INVALID_ARGUMENT})
"""Codes that mean that there is no such resource."""


def add_resources(server: ToolServer) -> None:
    """Publish the resource templates and the list of sessions."""

    @server.resource(
        SESSION,
        name="session",
        title="Session",
        description="A session as it is now: state, settings, checkpoints, and the outcome of its latest turn.",
        mime_type="application/json",
    )
    async def session(session_id: str, context: Context[Any, Any]) -> str:
        with _reading(server, context, "session") as caller:
            view = await (await server.backend.registry()).get(caller.principal, session_id)
            return guarded_json(guided_view(view, server.offer(caller)))

    @server.resource(
        TRANSCRIPT,
        name="transcript",
        title="Transcript of a session",
        description="All that happened in a session, one JSON event a line; `after` starts behind a cursor.",
        mime_type="application/x-ndjson",
    )
    async def transcript(session_id: str, context: Context[Any, Any], after: str = "0") -> str:
        with _reading(server, context, "transcript") as caller:
            return await _transcript(server, caller.principal, session_id, _cursor(after))

    @server.resource(
        FILE,
        name="file",
        title="File of a session",
        description="A file of a session's workspace, as it is now.",
        mime_type="application/octet-stream",
    )
    async def file(session_id: str, path: str, context: Context[Any, Any]) -> bytes:
        with _reading(server, context, "file") as caller:
            return await _file(server, caller.principal, session_id, path)

    @server.resource(
        PATCH,
        name="changes",
        title="Changes of a session",
        description="What the agent changed, as a patch for git apply: since its session began, or between the "
        "checkpoints `since` and `until`; of `paths` only, one a line.",
        mime_type="text/x-patch",
    )
    async def changes(
        session_id: str, context: Context[Any, Any], since: str = "", until: str = "", paths: str = ""
    ) -> bytes:
        with _reading(server, context, "changes") as caller:
            return await (await server.backend.registry()).patch(
                caller.principal,
                session_id,
                from_checkpoint_id=since or None,
                to_checkpoint_id=until or None,
                paths=paths.split("\n") if paths else None,
            )

    async def listed(context: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> ListResourcesResult:
        try:
            return await _listed(server, server.allowed(context, Scope.READ).principal, params.cursor)
        except Exception as error:
            known = as_rookery_error(error, where="resources/list")
            code = INVALID_PARAMS if known.code is ErrorCode.INVALID_ARGUMENT else INTERNAL_ERROR
            raise MCPError(code=code, message=str(server.told(context, known))) from error

    # The SDK lists all resources at once and hands its own method no cursor.
    server.protocol.add_request_handler("resources/list", PaginatedRequestParams, listed)


async def _listed(server: ToolServer, principal: str, cursor: str | None) -> ListResourcesResult:
    registry = await server.backend.registry()
    page = await registry.list(principal, ListRequest(limit=_LISTED, cursor=cursor))
    return ListResourcesResult(
        resources=[
            *(await server.list_resources() if cursor is None else ()),
            *(
                Resource(
                    uri=SESSION.format(session_id=one.session_id),
                    name=one.session_id,
                    title=one.title or "Untitled session",
                    description=f"{one.state.value}, turn {one.turn}, ${one.usd:.4f}",
                    mime_type="application/json",
                )
                for one in page.sessions
            ),
        ],
        next_cursor=page.cursor,
        # Somebody else's list is another one, and it changes while agents work.
        ttl_ms=0,
        cache_scope="private",
    )


def _cursor(text: str) -> int:
    """A cursor as it stands in an address.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= _CURSOR_DIGITS):
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "after: the cursor of an answer; 0 reads from the start.")
    return int(text)


async def _transcript(server: ToolServer, principal: str, session_id: str, after: int) -> str:
    registry = await server.backend.registry()
    lines: list[str] = []
    size = 0
    while True:
        page = await registry.transcript(principal, session_id, after=after, limit=_PAGE)
        for event in page.events:
            line = guarded_json(event)
            size += len(line)
            if size > MAX_RESOURCE_BYTES:
                raise RookeryError(
                    ErrorCode.INVALID_ARGUMENT,
                    "The transcript is too long for one resource: read it in pages with read_transcript.",
                )
            lines.append(line + "\n")
        after = page.cursor
        if not page.more:
            return "".join(lines)


async def _file(server: ToolServer, principal: str, session_id: str, path: str) -> bytes:
    registry = await server.backend.registry()
    parts: list[bytes] = []
    offset: int | None = 0
    while offset is not None:
        content = await registry.read_file(principal, session_id, path, offset, _PART)
        if content.size > MAX_RESOURCE_BYTES:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT, "The file is too long for one resource: read it in parts with read_file."
            )
        parts.append(content.text.encode() if content.text is not None else base64.b64decode(content.base64 or ""))
        offset = content.next_offset
    return b"".join(parts)


@contextmanager
def _reading(server: ToolServer, context: Context[Any, Any], where: str) -> Iterator[Caller]:
    """Who reads a resource. A failure is what the protocol calls one, told as its caller is told of all things.

    Raises:
        ResourceError: whatever happens inside.
    """
    offer: Offer | None = None
    try:
        caller = server.caller(context)
        offer = server.offer(caller)
        caller.require(Scope.READ)
        yield caller
    except Exception as error:
        known = as_rookery_error(error, where=f"resource {where}")
        text = str(known if offer is None else offer.told(known))
        raise (ResourceNotFoundError(text) if known.code in _MISSING else ResourceError(text)) from error
