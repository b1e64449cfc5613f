"""The store of content: each piece of bytes once, under the hash of it, shared by all sessions and forks.

Objects are plain files below the root, sharded by the first byte of their hash; nothing in the sandbox can reach
them. They are not compressed: a rewind or a fork then copies inside the kernel (or shares blocks, where the file
system can), which is several times faster than inflating. SHA-256 was chosen by measurement: with the processor's
instructions for it, it runs at twice the speed of BLAKE2b.

Objects are renamed into place when they are complete, so that a process that is killed leaves none half-written. They
are not flushed to the disk one by one (git does not flush its loose objects by default either): that took 9 to 16 ms
for a small snapshot on an idle disk and many times that on a busy one. A power cut can therefore cost what was written
in the last seconds, as it can in the workspace itself; an object that was cut short by one is known by its length, is
never taken for the content, and is written again when the same content is next stored.

Several processes may use one store. Work that relies on objects holds the store's lock shared; the garbage collector
holds it exclusively for each small piece of its sweep (:mod:`server.checkpoints.garbage`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.checkpoints.work import DamagedStoreError, Stop
from server.errors import ErrorCode, RookeryError

GRACE_S: Final = 3600.0
"""An object younger than this is never collected: whoever wrote or reused it may not have recorded its tree yet."""

FRESH_S: Final = 60.0
"""An object that is used again is made young again if it is older than this."""

LOCK_WAIT_S: Final = 30.0
"""Longest wait for the store's lock; its holders need milliseconds (the collector) or do not exclude each other."""

_FICLONE: Final = 0x40049409
_WORTH_SHARING: Final = 4096
_NO_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS})
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


def digest_of(data: bytes | memoryview) -> bytes:
    """The name of a content: its SHA-256."""
    return hashlib.sha256(data).digest()


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything, however small the steps are that the system takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class ObjectStore:
    """Content-addressed objects below ``root``.

    Args:
        root: made if missing, readable by this user only. Must not be reachable from any sandbox.

    Raises:
        OSError: the directory cannot be made or opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # One that is only dropped gives its descriptor back too.
        self._closing = weakref.finalize(self, os.close, self._fd)
        self._counter = itertools.count()
        self._prefix = f"tmp/{os.getpid()}-{secrets.token_hex(4)}"

    def close(self) -> None:
        """Give up the directory's descriptor; the store is of no use afterwards. Idempotent."""
        self._closing()

    @property
    def fd(self) -> int:
        """The root's descriptor, for calls relative to it."""
        return self._fd

    @contextlib.contextmanager
    def shared(self, stop: Stop) -> Iterator[None]:
        """Hold off the garbage collector.

        Raises:
            RookeryError: ``storage_unavailable`` when the lock is not to be had.
        """
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._fd)
        try:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                stop.check()
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RookeryError(
                            ErrorCode.STORAGE_UNAVAILABLE,
                            "The checkpoint store is locked by a long clean-up: try again in a minute.",
                        ) from error
                    time.sleep(0.005)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Try for the whole store for a moment; yields whether it was to be had."""
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._fd)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def batch(self) -> Batch:
        """Begin to write objects."""
        return Batch(self)

    def open(self, digest: bytes) -> int:
        """Open an object for reading; the caller closes the descriptor.

        Raises:
            RookeryError: ``storage_unavailable``: it is missing.
        """
        name = digest.hex()
        try:
            return os.open(f"{name[:2]}/{name[2:]}", _READ, dir_fd=self._fd)
        except FileNotFoundError as error:
            raise DamagedStoreError(f"object {name} is missing") from error

    def exists(self, digest: bytes) -> bool:
        name = digest.hex()
        try:
            os.stat(f"{name[:2]}/{name[2:]}", dir_fd=self._fd)
        except FileNotFoundError:
            return False
        return True

    def size(self, digest: bytes) -> int:
        """How many bytes an object holds.

        Raises:
            RookeryError: ``storage_unavailable``: it is missing.
        """
        name = digest.hex()
        try:
            return os.stat(f"{name[:2]}/{name[2:]}", dir_fd=self._fd).st_size
        except FileNotFoundError as error:
            raise DamagedStoreError(f"object {name} is missing") from error

    def read(self, digest: bytes) -> bytes:
        """A whole object, checked against its hash. For directories, lists of chunks and single chunks only.

        Raises:
            RookeryError: ``storage_unavailable``: it is missing or damaged.
        """
        fd = self.open(digest)
        try:
            data = _read_all(fd)
        finally:
            os.close(fd)
        if digest_of(data) != digest:
            raise DamagedStoreError(f"object {digest.hex()} does not match its hash")
        return data

    def temporary(self) -> str:
        """A fresh name for an object in the making, relative to the root."""
        return f"{self._prefix}-{next(self._counter)}"


class Copier:
    """Copies objects into files of one file system. Safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._shares = True

    def copy(self, digest: bytes, size: int, target: int, offset: int = 0) -> None:
        """Copy an object into an open file at ``offset``, inside the kernel; shares blocks where that is possible.

        Args:
            size: what the object must measure: a cut one is noticed before it can pass for the content.

        Raises:
            RookeryError: ``storage_unavailable``: it is missing or damaged.
        """
        source = self._store.open(digest)
        try:
            if self._shares and size >= _WORTH_SHARING and offset == 0 and self._share(source, target, size):
                return
            done = _copy_range(source, target, size, 0, offset)
            while done < size:
                done += (step := _copy_range(source, target, size - done, done, offset + done))
                if not step:
                    raise DamagedStoreError(f"object {digest.hex()} is cut short")
        finally:
            os.close(source)

    def _share(self, source: int, target: int, size: int) -> bool:
        if os.fstat(source).st_size != size:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._shares = False
            return False
        return True


class Batch:
    """Objects written for one snapshot."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._fresh_after = time.time() - FRESH_S
        self.written = 0
        """New objects."""

    def put(self, data: bytes | memoryview) -> bytes:
        """Keep a content and return its hash. A content that is there already is not written again.

        Raises:
            OSError: no room, or another failure of the disk. Nothing half-written is left under the hash.
        """
        digest = digest_of(data)
        root = self._store.fd
        name = digest.hex()
        path = f"{name[:2]}/{name[2:]}"
        if self._reused(path, len(data)):
            return digest
        temporary = self._store.temporary()
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400, dir_fd=root)
        try:
            write_all(fd, data)
            try:
                os.rename(temporary, path, src_dir_fd=root, dst_dir_fd=root)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path[:2], 0o700, dir_fd=root)
                os.rename(temporary, path, src_dir_fd=root, dst_dir_fd=root)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=root)
            raise
        finally:
            os.close(fd)
        self.written += 1
        return digest

    def has(self, digest: bytes, size: int) -> bool:
        """Whether a content of that size is there already; it is then as young as one that was just written."""
        name = digest.hex()
        return self._reused(f"{name[:2]}/{name[2:]}", size)

    def _reused(self, path: str, size: int) -> bool:
        root = self._store.fd
        try:
            present = os.stat(path, dir_fd=root)
        except FileNotFoundError:
            return False
        # A power cut can leave an object shorter than it was; such a one is written again.
        if present.st_size != size:
            return False
        if present.st_mtime < self._fresh_after:
            os.utime(path, dir_fd=root)
        return True


def _read_all(fd: int) -> bytes:
    expected = os.fstat(fd).st_size
    data = os.read(fd, expected + 1)
    if len(data) == expected:
        return data
    parts = [data]
    while data:
        data = os.read(fd, 1 << 20)
        parts.append(data)
    return b"".join(parts)


def _copy_range(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
    """Copy up to ``count`` bytes; 0 at the end of ``source``."""
    try:
        return os.copy_file_range(source, target, count, source_offset, target_offset)
    except OSError as error:
        # Different file systems, or one that cannot: copy through memory.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            raise
    data = os.pread(source, min(count, 1 << 20), source_offset)
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], target_offset + done)
    return done
