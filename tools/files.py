"""Tools that look into a session's workspace."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final
from urllib.parse import quote

from mcp_types import ResourceLink
from pydantic import Field

from server.errors import ErrorCode, RookeryError
from server.views import DiffReport, FileContent, FileListing, PatchReport, WrittenFile
from tools import rendering
from tools.addresses import FILE, MAX_RESOURCE_BYTES
from tools.definition import Call, ToolDefinition
from tools.sessions import SessionArguments, SessionId

MAX_READ_BYTES: Final = 262_144
"""Most bytes of a file in one answer."""

MAX_WRITE_BYTES: Final = 2_000_000
"""Most bytes of a file in one call; larger material comes with the workspace at the spawn."""

WorkspacePath = Annotated[
    str, Field(min_length=1, max_length=4096, description="path relative to the workspace, as in src/main.py")
]


class ListFilesArguments(SessionArguments):
    path: WorkspacePath = "."
    depth: int = Field(default=1, ge=1, le=32, description="levels of directories to descend")
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
    content = await call.registry.read_file(
        call.principal, arguments.session_id, arguments.path, arguments.offset, arguments.limit
    )
    if content.next_offset is None or content.size > MAX_RESOURCE_BYTES:
        return content
    whole = FILE.replace("{+path}", "{path}").format(session_id=content.session_id, path=quote(content.path))
    return content.model_copy(update={"uri": whole})


class WriteFileArguments(SessionArguments):
    path: WorkspacePath
    text: str | None = Field(default=None, max_length=MAX_WRITE_BYTES, description="the whole new content as text")
    base64: str | None = Field(default=None, max_length=2 * MAX_WRITE_BYTES, description="or as base64")


class CompareArguments(SessionArguments):
    from_checkpoint_id: SessionId | None = Field(
        default=None, description="checkpoint to begin from; default: the session's first"
    )
    to_checkpoint_id: SessionId | None = Field(
        default=None, description="checkpoint to compare with; default: the files as they are now"
    )
    paths: Annotated[tuple[WorkspacePath, ...], Field(max_length=100)] | None = Field(
        default=None, description="only these and what is below them"
    )


class DiffFilesArguments(CompareArguments):
    max_bytes: int = Field(default=60_000, ge=0, le=1_000_000, description="where the diff is cut")


async def write_file(call: Call, arguments: WriteFileArguments) -> WrittenFile:
    """Write one file of an idle session's workspace, whole; the agent is told before its next prompt."""
    if (arguments.text is None) == (arguments.base64 is None):
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "`text` or `base64`: give exactly one of them.")
    if arguments.text is not None:
        data = arguments.text.encode()
    else:
        try:
            data = base64.b64decode(arguments.base64 or "", validate=True)
        except ValueError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "`base64` is not valid base64.") from error
    return await call.registry.write_file(call.principal, arguments.session_id, arguments.path, data)


async def diff_files(call: Call, arguments: DiffFilesArguments) -> DiffReport:
    """Show what changed in a session's workspace between two checkpoints, or since one: files, lines, unified diff."""
    return await call.registry.diff(
        call.principal,
        arguments.session_id,
        from_checkpoint_id=arguments.from_checkpoint_id,
        to_checkpoint_id=arguments.to_checkpoint_id,
        paths=arguments.paths,
        max_bytes=arguments.max_bytes,
    )


async def export_changes(call: Call, arguments: CompareArguments) -> PatchReport:
    """Take the agent's work home as a patch for `git apply`, binary files and modes included.

    A long patch is given by its beginning; the resource at `uri` holds the whole.
    """
    return await call.registry.export(
        call.principal,
        arguments.session_id,
        from_checkpoint_id=arguments.from_checkpoint_id,
        to_checkpoint_id=arguments.to_checkpoint_id,
        paths=arguments.paths,
    )


def _patch_link(report: PatchReport | DiffReport) -> ResourceLink | None:
    """The whole patch, of an answer that shows only its beginning."""
    cut = report.preview is not None if isinstance(report, PatchReport) else report.truncated
    if not cut or report.uri is None:
        return None
    return ResourceLink(type="resource_link", uri=report.uri, name="changes.patch", mime_type="text/x-patch")


def _file_link(content: FileContent) -> ResourceLink | None:
    """The whole file, of an answer that holds a part."""
    if content.uri is None:
        return None
    name = content.path.rpartition("/")[2]
    return ResourceLink(type="resource_link", uri=content.uri, name=name, size=content.size)


TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    ToolDefinition(
        name="list_files",
        title="List files",
        run=list_files,
        arguments=ListFilesArguments,
        answer=FileListing,
        render=rendering.listing_text,
        exact=True,
        read_only=True,
    ),
    ToolDefinition(
        name="read_file",
        title="Read a file",
        run=read_file,
        arguments=ReadFileArguments,
        answer=FileContent,
        render=rendering.content_text,
        exact=True,
        link=_file_link,
        read_only=True,
    ),
    ToolDefinition(
        name="write_file",
        title="Write a file",
        run=write_file,
        arguments=WriteFileArguments,
        answer=WrittenFile,
        render=rendering.written_text,
        destructive=True,
        idempotent=True,
    ),
    ToolDefinition(
        name="diff_files",
        title="Compare files",
        run=diff_files,
        arguments=DiffFilesArguments,
        answer=DiffReport,
        render=rendering.diff_text,
        exact=True,
        link=_patch_link,
        read_only=True,
    ),
    ToolDefinition(
        name="export_changes",
        title="Export changes",
        run=export_changes,
        arguments=CompareArguments,
        answer=PatchReport,
        render=rendering.patch_text,
        exact=True,
        link=_patch_link,
        read_only=True,
    ),
)
