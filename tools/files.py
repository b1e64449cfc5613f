"""Tools that look into a session's workspace."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from server.views import FileContent, FileListing
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.sessions import SessionArguments

MAX_READ_BYTES: Final = 262_144
"""Most bytes of a file in one answer."""

WorkspacePath = Annotated[
    str, Field(min_length=1, max_length=4096, description="path relative to the workspace, as in src/main.py")
]


class ListFilesArguments(SessionArguments):
    path: WorkspacePath = "."
    depth: int = Field(default=1, ge=1, le=64, description="levels of directories to descend")
    limit: int = Field(default=500, ge=1, le=5000, description="most entries to answer with")


class ReadFileArguments(SessionArguments):
    path: WorkspacePath
    offset: int = Field(default=0, ge=0, le=2**53, description="byte to start at")
    limit: int = Field(default=65_536, ge=1, le=MAX_READ_BYTES, description="most bytes to read")


async def list_files(call: Call, arguments: ListFilesArguments) -> FileListing:
    """List the files in a session's workspace, also while the agent works and after the session has ended."""
    return await call.registry.list_files(
        call.principal, arguments.session_id, arguments.path, arguments.depth, arguments.limit
    )


async def read_file(call: Call, arguments: ReadFileArguments) -> FileContent:
    """Read a file of a session's workspace: `text` when it is UTF-8, else `base64`; long ones in parts by `offset`."""
    return await call.registry.read_file(
        call.principal, arguments.session_id, arguments.path, arguments.offset, arguments.limit
    )


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="list_files",
        title="List files",
        run=list_files,
        arguments=ListFilesArguments,
        answer=FileListing,
        render=rendering.listing_text,
        read_only=True,
    ),
    ToolDefinition(
        name="read_file",
        title="Read a file",
        run=read_file,
        arguments=ReadFileArguments,
        answer=FileContent,
        render=rendering.content_text,
        read_only=True,
    ),
)
