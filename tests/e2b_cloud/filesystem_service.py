"""envd's filesystem service over Connect. Without watches: nothing of ours uses them."""

from __future__ import annotations

import datetime
from typing import Any

from e2b.envd.filesystem import filesystem_pb as messages
from e2b.envd.filesystem.filesystem_connect import Filesystem as FilesystemProtocol
from protobuf.wkt.google.protobuf.timestamp_pb import Timestamp

from tests.e2b_cloud.machine import GuestError, MachineGoneError
from tests.e2b_cloud.process_service import current, gone, refusal, user_of

KINDS = {
    "file": messages.FileType.FILE,
    "directory": messages.FileType.DIRECTORY,
    "symlink": messages.FileType.SYMLINK,
}


def entry_of(found: dict[str, Any]) -> messages.EntryInfo:
    """What the guest told of a file, as the wire has it."""
    modified = datetime.datetime.fromtimestamp(found["modified"], datetime.UTC)
    return messages.EntryInfo(
        name=found["name"],
        type=KINDS[found["type"]],
        path=found["path"],
        size=found["size"],
        mode=found["mode"],
        permissions=found["permissions"],
        owner=found["owner"],
        group=found["group"],
        modified_time=Timestamp.from_datetime(modified),
        symlink_target=found["target"],
        metadata=found["metadata"],
        is_symlink=found["is_symlink"],
    )


async def ask(work: str, context: Any, **request: Any) -> dict[str, Any]:
    """Have the guest of the request's sandbox do something, as the request's user."""
    sandbox = current.get()
    if sandbox.machine is None:
        raise gone(sandbox)
    try:
        answer, _ = await sandbox.machine.ask(work, user=user_of(context) or sandbox.settings.default_user, **request)
    except GuestError as error:
        raise refusal(error) from None
    except MachineGoneError:
        raise gone(sandbox) from None
    return answer


class FilesystemService(FilesystemProtocol):
    """The unary calls."""

    async def stat(self, request: messages.StatRequest, context: Any) -> messages.StatResponse:
        """One file."""
        return messages.StatResponse(entry=entry_of((await ask("stat", context, path=request.path))["entry"]))

    async def make_dir(self, request: messages.MakeDirRequest, context: Any) -> messages.MakeDirResponse:
        """A new directory, with all above it."""
        return messages.MakeDirResponse(entry=entry_of((await ask("make", context, path=request.path))["entry"]))

    async def move(self, request: messages.MoveRequest, context: Any) -> messages.MoveResponse:
        """Rename."""
        answer = await ask("move", context, path=request.source, destination=request.destination)
        return messages.MoveResponse(entry=entry_of(answer["entry"]))

    async def list_dir(self, request: messages.ListDirRequest, context: Any) -> messages.ListDirResponse:
        """What a directory holds, to a depth."""
        answer = await ask("list", context, path=request.path, depth=request.depth or 1)
        return messages.ListDirResponse(entries=[entry_of(entry) for entry in answer["entries"]])

    async def remove(self, request: messages.RemoveRequest, context: Any) -> messages.RemoveResponse:
        """A file or a whole directory."""
        await ask("remove", context, path=request.path)
        return messages.RemoveResponse()
