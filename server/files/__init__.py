"""The files of a session's workspace, wherever its sandbox is: the seam that all work with them goes through."""

from server.files.answers import list_files, read_file, write_file
from server.files.base import WorkspaceFiles
from server.files.host import HostFiles
from server.files.paths import components, shown

__all__ = ["HostFiles", "WorkspaceFiles", "components", "list_files", "read_file", "shown", "write_file"]
