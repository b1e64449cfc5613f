"""The files of a session's workspace, wherever its sandbox is: the seam that all work with them goes through."""

from server.files.answers import list_files, read_file, write_file
from server.files.base import ReadableFiles, WorkspaceFiles
from server.files.engines import RemoteEngines
from server.files.host import HostFiles
from server.files.paths import components, shown
from server.files.remote import RemoteFiles
from server.files.stored import StoredFiles

__all__ = [
    "HostFiles",
    "ReadableFiles",
    "RemoteEngines",
    "RemoteFiles",
    "StoredFiles",
    "WorkspaceFiles",
    "components",
    "list_files",
    "read_file",
    "shown",
    "write_file",
]
