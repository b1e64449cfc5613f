"""Tar streams of a workspace, written and read by the host without following anything in it.

Out: directories, regular files and symbolic links (as links); sockets, pipes and devices are left out. In: the same
kinds and nothing else. A symbolic link is data here, whatever it points at: the agent could make the same one itself,
no host code follows it, and a virtual environment needs absolute ones. What is refused is an entry that would be
written *through* a link, an absolute or climbing name, a hard link out of the archive, and anything that is a device.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Final, Self, cast

from server.sandboxes.tree import OPEN_DIRECTORY, Entry, open_beneath, split_path, walk

CHUNK: Final = 256 * 1024
"""Size of the chunks of a stream, in bytes."""
_BLOCK: Final = tarfile.BLOCKSIZE
_LONGEST_HEADER: Final = 64 * 1024
"""Extended headers hold a path or two; the largest path of Linux has 4096 bytes."""
_EXTENDED: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_WRITE_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ArchiveRefusedError(ValueError):
    """The stream holds something that is not taken. The text says what, without a path of the host."""


def pack(directory: Path, path: str, limit: int) -> Generator[bytes, None, None]:
    """What lies at ``path`` below ``directory`` as a tar stream, in chunks of about :data:`CHUNK`.

    Names in it are relative to ``directory``, which itself must not be in the agent's hand.

    Raises:
        ArchiveRefusedError: the path leaves the directory, or the content is larger than ``limit`` bytes.
        OSError: the path does not exist.
    """
    try:
        parts = split_path(path)
    except ValueError as error:
        raise ArchiveRefusedError(str(error)) from None
    buffer = bytearray()
    total = 0
    start = os.open(directory, OPEN_DIRECTORY)
    try:
        for piece in _pieces(start, parts):
            buffer += piece
            total += len(piece)
            if total > limit:
                raise ArchiveRefusedError("the content is larger than the sandbox may hold")
            if len(buffer) >= CHUNK:
                yield bytes(buffer)
                buffer.clear()
    finally:
        os.close(start)
    buffer += bytes(2 * _BLOCK)
    yield bytes(buffer)


def _pieces(start: int, parts: list[str]) -> Iterator[bytes]:
    holder = open_beneath(start, parts[:-1])
    try:
        if not parts:
            for entry in walk(holder):
                yield from _entry(entry, "")
            return
        status = os.stat(parts[-1], dir_fd=holder, follow_symlinks=False)
        prefix = "/".join(parts)
        yield from _entry(Entry(prefix, parts[-1], holder, status), "")
        if stat.S_ISDIR(status.st_mode):
            inner = open_beneath(holder, parts[-1:])
            try:
                for entry in walk(inner):
                    yield from _entry(entry, prefix + "/")
            finally:
                os.close(inner)
    finally:
        os.close(holder)


def _header(entry: Entry, prefix: str) -> tarfile.TarInfo:
    # Whose it is stays out of it: whoever unpacks decides.
    header = tarfile.TarInfo(prefix + entry.path)
    header.mode = stat.S_IMODE(entry.status.st_mode) & 0o777
    header.mtime = int(entry.status.st_mtime)
    return header


def _encoded(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _entry(entry: Entry, prefix: str) -> Iterator[bytes]:
    header = _header(entry, prefix)
    if stat.S_ISDIR(entry.status.st_mode):
        header.type = tarfile.DIRTYPE
        yield _encoded(header)
    elif stat.S_ISLNK(entry.status.st_mode):
        header.type = tarfile.SYMTYPE
        with contextlib.suppress(OSError):
            header.linkname = os.readlink(entry.name, dir_fd=entry.directory)
            yield _encoded(header)
    elif stat.S_ISREG(entry.status.st_mode):
        # O_NONBLOCK: should it have become a pipe meanwhile, opening it must not wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(entry.name, flags, dir_fd=entry.directory)
        except (FileNotFoundError, PermissionError):
            return
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                header.size = status.st_size
                yield _encoded(header)
                yield from _content(file, status.st_size)


def _content(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Exactly ``size`` bytes and the padding, whatever happens to the file meanwhile."""
    left = size
    while left > 0:
        piece = file.read(min(CHUNK, left)) or bytes(min(CHUNK, left))
        left -= len(piece)
        yield piece
    yield bytes(-size % _BLOCK)


class _BoundedHeader(tarfile.TarInfo):
    """A header whose extensions are bounded: ``tarfile`` reads them whole, at the size that the stream claims."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in (*_EXTENDED, tarfile.GNUTYPE_LONGLINK) and header.size > _LONGEST_HEADER:
            raise ArchiveRefusedError("the archive has a header of unreasonable size")
        return header


class _BoundedTar(tarfile.TarFile):
    tarinfo = _BoundedHeader


def unpack(root: int, stream: io.RawIOBase | io.BufferedIOBase, *, owner: int | None, limit: int) -> None:
    """Write a tar stream below the open directory ``root``. Existing files are replaced, existing directories kept.

    Args:
        owner: uid and gid that everything written belongs to; None: ourselves.
        limit: most bytes of content.

    Raises:
        ArchiveRefusedError: it is no tar stream, too large, or an entry is not taken; what came before stays.
        OSError: the disk refused.
    """
    total = 0
    try:
        with _BoundedTar.open(
            fileobj=io.BufferedReader(cast(io.RawIOBase, stream), CHUNK), mode="r|", bufsize=CHUNK
        ) as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps every header it met; a stream is never asked for an earlier one.
                archive.members.clear()  # type: ignore[attr-defined] # typeshed leaves the attribute out
                total += member.size
                if total > limit:
                    raise ArchiveRefusedError("the content is larger than the sandbox may hold")
                _write(root, archive, member, owner)
    except tarfile.TarError as error:
        raise ArchiveRefusedError(f"not a readable tar stream: {error}") from None


def _write(root: int, archive: tarfile.TarFile, member: tarfile.TarInfo, owner: int | None) -> None:
    try:
        parts = split_path(member.name)
    except ValueError:
        raise ArchiveRefusedError("an entry of the archive leaves the workspace") from None
    if not (member.isdir() or member.isreg() or member.issym() or member.islnk()) or member.issparse():
        raise ArchiveRefusedError("the archive holds a device, pipe or sparse file")
    if not parts:
        if member.isdir():
            return
        raise ArchiveRefusedError("an entry of the archive has no name")
    directory = _open_for_writing(root, parts[:-1], owner)
    name = parts[-1]
    try:
        if member.isdir():
            _write_directory(directory, name, member, owner)
            return
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise ArchiveRefusedError("a file of the archive would replace a directory") from None
        if member.issym():
            _write_symbolic_link(directory, name, member, owner)
        elif member.islnk():
            _write_hard_link(root, directory, name, member)
        else:
            _write_file(directory, name, archive, member, owner)
    finally:
        os.close(directory)


def _open_for_writing(root: int, parts: list[str], owner: int | None) -> int:
    try:
        return open_beneath(root, parts, create=True, owner=owner)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ArchiveRefusedError("an entry of the archive lies below a link or a file") from None
        raise


def _write_directory(directory: int, name: str, member: tarfile.TarInfo, owner: int | None) -> None:
    os.close(_open_for_writing(directory, [name], owner))
    # Our own access stays, or what the archive puts below could not be written.
    os.chmod(name, (member.mode & 0o777) | stat.S_IRWXU, dir_fd=directory)


def _write_symbolic_link(directory: int, name: str, member: tarfile.TarInfo, owner: int | None) -> None:
    if not member.linkname or "\0" in member.linkname:
        raise ArchiveRefusedError("a link of the archive points nowhere")
    os.symlink(member.linkname, name, dir_fd=directory)
    if owner is not None:
        os.chown(name, owner, owner, dir_fd=directory, follow_symlinks=False)


def _write_hard_link(root: int, directory: int, name: str, member: tarfile.TarInfo) -> None:
    try:
        parts = split_path(member.linkname)
        source = open_beneath(root, parts[:-1])
    except (ValueError, OSError):
        raise ArchiveRefusedError("a hard link of the archive points out of the workspace") from None
    try:
        if not parts or not stat.S_ISREG(os.stat(parts[-1], dir_fd=source, follow_symlinks=False).st_mode):
            raise ArchiveRefusedError("a hard link of the archive points at no file")
        os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        raise ArchiveRefusedError("a hard link of the archive points at no file") from None
    finally:
        os.close(source)


def _write_file(
    directory: int, name: str, archive: tarfile.TarFile, member: tarfile.TarInfo, owner: int | None
) -> None:
    content = archive.extractfile(member)
    assert content is not None, "regular files have content"
    with os.fdopen(os.open(name, _WRITE_NEW, 0o600, dir_fd=directory), "wb", buffering=0) as file:
        left = member.size
        while left > 0:
            piece = content.read(min(CHUNK, left))
            if not piece:
                raise ArchiveRefusedError("the archive ends in the midst of a file")
            left -= len(piece)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
        os.fchmod(file.fileno(), member.mode & 0o777)
        os.utime(file.fileno(), (member.mtime, member.mtime))
