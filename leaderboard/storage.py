"""Atomic writing of files: complete, synced to disk, and under a name that the first writer wins.

Stages, leases and the board write through `FolderStorage`, and outputs for people and machines through `replace_file`.
No other module renames or links a file. `FolderStorage` has few methods, so that an object store with conditional
writes could offer the same ones.

A file is written under a temporary name, synced to disk, and then hard-linked to its final name, which fails if that
name exists. So the first writer wins without a lock, readers never see a partial file, and a killed writer leaves at
most a temporary file, which a later writer removes. The file system only has to support hard links within a folder:
local disks and NFS do; FAT, exFAT and object stores mounted as folders do not, and are refused. Renaming could not
replace the links there: it overwrites, so the last writer would win.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tasks.errors import RegradeError

MAKE_WRITABLE = "see that the directory can be written and run again"
NOTHING_LOST = "nothing else is lost"

STALE_SECONDS = 3600.0
"""Age of a temporary file at which its writer counts as dead. Writing takes seconds; an hour allows for clock skew."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a write without space left: on the disk, in the user's quota, or below the limit of the file size."""

NO_HARD_LINKS = (
    "its file system has no hard links, which make the first writer of a result win. Name a folder on a local disk "
    "(ext4, xfs, btrfs, APFS, ...) or on NFS; FAT, exFAT and object stores mounted as folders do not do"
)

_CANNOT_LINK = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EMLINK})
_UNWRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
    | {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENODEV, errno.ENXIO}
)
_TEMPORARY = re.compile(r"\..+-\d+-[0-9a-f]{32}\.tmp", re.DOTALL)
_PROBE = 1 << 20
"""Bytes that are written to test whether a disk is full: more than a file system's block."""


class StorageError(RegradeError):
    """Something could not be written. The message names the file and says what to do next."""


class DiskFull(StorageError):
    """No space is left. Existing files are unchanged."""


class NotWritable(StorageError):
    """Files cannot be written at this place as it is: the user has to change it, or name another one."""

    exit_code = 2


class FolderStorage:
    """Named bytes under one folder, for any number of processes and machines that share it.

    A name is a relative path with `/`. Its content is complete, and stays until it is deleted, or replaced because it
    was damaged. Names that begin with a dot belong to unfinished writers and are never listed.

    Args:
        root: the folder; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_if_absent(
        self, name: str, content: bytes | memoryview | Path, damaged: Callable[[], bool] = lambda: False
    ) -> bool:
        """Store bytes under a name that does not exist yet; returns whether these bytes are stored there now.

        False means that another writer was first, and its bytes are to be used instead.

        Args:
            content: the bytes, or a file that has them and will not change; a file is linked if possible, else copied.
            damaged: called if the name exists already: whether its content is to be replaced.

        Raises:
            DiskFull: no space is left.
            NotWritable: the folder cannot be written to, or its file system has no hard links.
            StorageError: writing failed for another reason.

        No error leaves anything under the name.
        """
        path = self.path(name)
        with _readable_errors(path, MAKE_WRITABLE, NOTHING_LOST):
            if path.exists():
                return damaged() and _replaced(path, content)
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            if isinstance(content, Path):
                won = _linked_as_it_is(content, path)
            else:
                with _draft(path.parent, content) as draft:
                    won = _linked(draft, path)
            return won or (damaged() and _replaced(path, content))

    def make_folder(self, name: str) -> None:
        """Make a new folder, for files that libraries write themselves and that an object stored here will refer to.

        Raises:
            DiskFull, NotWritable, StorageError: it cannot be made.
        """
        with _readable_errors(self.path(name), MAKE_WRITABLE, NOTHING_LOST):
            self.path(name).mkdir(parents=True)

    @contextmanager
    def draft(self, folder: str) -> Iterator[Path]:
        """An empty file for a library that writes itself, to be put under a name of this folder and then removed.

        Raises:
            DiskFull, NotWritable, StorageError: it cannot be made, or the system refused what was written to it.
        """
        with _readable_errors(self.path(folder), MAKE_WRITABLE, NOTHING_LOST):
            self.path(folder).mkdir(parents=True, exist_ok=True)
            _sweep(self.path(folder))
            with _draft(self.path(folder), b"") as draft:
                yield draft

    def open(self, name: str) -> BinaryIO:
        """Open the file under a name for reading.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        return self.path(name).open("rb")

    def exists(self, name: str) -> bool:
        """Whether a name exists."""
        return self.path(name).exists()

    def list(self, prefix: str = "", suffix: str = "") -> Sequence[str]:
        """Names with this prefix and suffix, in order. Not recursive: `a/` lists what is directly in `a`."""
        folder, _, begins = prefix.rpartition("/")
        try:
            entries = os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        inside = f"{folder}/" if folder else ""
        return sorted(
            f"{inside}{name}"
            for name in entries
            if name.startswith(begins) and name.endswith(suffix) and not name.startswith(".")
        )

    def delete(self, name: str) -> None:
        """Delete what is stored under a name, if anything is.

        Raises:
            OSError: it cannot be deleted.
        """
        self.path(name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Give a name's content a new version, by the clock of the machine that has the files.

        Raises:
            OSError: the name does not exist, or cannot be changed.
        """
        os.utime(self.path(name))

    def version(self, name: str) -> tuple[int, ...]:
        """A value that changes with every new content of the name, and with every touch.

        Raises:
            OSError: the name does not exist, or its status cannot be read.
        """
        status = self.path(name).stat()
        return status.st_ino, status.st_mtime_ns

    def path(self, name: str) -> Path:
        """The path of a name, for libraries that read files themselves."""
        return self.root / name


Writer = Callable[[BinaryIO], object]
"""Writes content into an open file, for what is too large to be in memory twice."""


def replace_file(path: Path, content: bytes | str | Writer) -> None:
    """Write an output file completely or not at all: the old content stays until the new one is on disk.

    A path that is no regular file (`/dev/stdout`, a pipe) is written to directly.

    Raises:
        DiskFull: no space is left.
        NotWritable: no file can be written there.
        StorageError: writing failed for another reason.
    """
    content = content.encode() if isinstance(content, str) else content
    with _readable_errors(path, "name another place, this one cannot be written", "what was there is still there"):
        before = path.stat().st_mode if path.exists() else None
        if before is not None and not stat.S_ISREG(before) and not stat.S_ISDIR(before):
            with path.open("wb") as file:
                _write(content, file)
            return
        target = Path(os.path.realpath(path))  # follows symbolic links, as any program that writes to one does
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with _draft(target.parent, content) as draft:
            if before is not None:
                draft.chmod(stat.S_IMODE(before))
            os.replace(draft, target)
            sync_folder(target.parent)


def has_hard_links(folder: Path) -> bool:
    """Whether the file system of a folder supports hard links; tested by making one.

    Raises:
        DiskFull, NotWritable, StorageError: the folder cannot be written to, so this cannot be tested.
    """
    with _readable_errors(folder, MAKE_WRITABLE, NOTHING_LOST):
        _sweep(folder)
        with _draft(folder, b"") as draft:
            twin = _temporary(folder)
            try:
                os.link(draft, twin)
            except OSError as error:
                return error.errno not in _CANNOT_LINK
            finally:
                twin.unlink(missing_ok=True)
    return True


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether writing into a folder failed because no space is left, whichever error a library raised.

    Libraries raise their own errors: some repeat the system's message (safetensors), some only report a short write
    (torch, numpy). So this also tests whether the last file of the folder can still grow.

    Args:
        folder: about to be deleted: the bytes of the test are left there.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        if isinstance(cause, DiskFull) or (isinstance(cause, OSError) and cause.errno in FULL):
            return True
        if any(os.strerror(code) in str(cause) for code in FULL):
            return True
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return not _can_grow(folder)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's directory entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _readable_errors(path: Path, advice: str, not_lost: str) -> Iterator[None]:
    """Turn a system error into a `StorageError` that names the file and says what to do and what is not lost."""
    try:
        yield
    except OSError as error:
        kind = NotWritable if error.errno in _UNWRITABLE else StorageError
        if error.errno in FULL:
            kind, advice = DiskFull, "make room there and run again"
        in_the_way = error.errno == errno.EEXIST  # raised where a file is in place of a folder
        reason = os.strerror(errno.ENOTDIR) if in_the_way else error.strerror or str(error)
        raise kind(f"{path}: not written, {reason}. What to do: {advice}; {not_lost}") from error


def _temporary(folder: Path) -> Path:
    return folder / f".{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}.tmp"


@contextmanager
def _draft(folder: Path, content: bytes | memoryview | Path | Writer) -> Iterator[Path]:
    """Write the bytes to a temporary file, synced to disk; it is removed afterwards unless it was renamed."""
    draft = _temporary(folder)
    try:
        with draft.open("xb") as file:
            _write(content, file)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with suppress(OSError):  # the final name is decided by now; a later writer removes the rest
            draft.unlink(missing_ok=True)


def _write(content: bytes | memoryview | Path | Writer, file: BinaryIO) -> None:
    if isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)
    elif callable(content):
        content(file)
    else:
        file.write(content)


def _linked(draft: Path, path: Path) -> bool:
    """Link our own draft to its final name; returns whether the name is ours."""
    try:
        os.link(draft, path)
    except OSError as error:
        # NFS may make the link and lose the reply; the retry then fails because the name exists: it is this very file.
        if not _same(draft, path):
            if isinstance(error, FileExistsError):
                return False
            if error.errno in _CANNOT_LINK:
                raise NotWritable(f"{path}: not written, {NO_HARD_LINKS}") from error
            raise
    sync_folder(path.parent)
    return True


def _linked_as_it_is(source: Path, path: Path) -> bool:
    """Link a file that others may use to another name, or a copy if it cannot be linked; returns whether it is there.

    Two writers that link one file to one name at the same time may both get true: the bytes are the same.
    """
    sync_file(source)
    try:
        os.link(source, path)
    except OSError as error:
        if _same(source, path):
            pass
        elif isinstance(error, FileExistsError):
            return False
        elif error.errno in _CANNOT_LINK:  # from another file system, or linked too often
            with _draft(path.parent, source) as draft:
                return _linked(draft, path)
        else:
            raise
    sync_folder(path.parent)
    return True


def _replaced(path: Path, content: bytes | memoryview | Path) -> bool:
    with _draft(path.parent, content) as draft:
        os.replace(draft, path)
        sync_folder(path.parent)
    return True


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove temporary files of killed writers."""
    for name in os.listdir(folder):
        if _TEMPORARY.fullmatch(name):
            with suppress(OSError):  # another writer sweeps too
                path = folder / name
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def _can_grow(folder: Path) -> bool:
    """Whether the last written file of a folder, and a new file, can take more bytes."""
    with suppress(FileNotFoundError):
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in [*sorted(files, key=lambda path: path.stat().st_mtime_ns)[-1:], folder / f".{uuid.uuid4().hex}"]:
            try:
                with path.open("ab") as file:
                    file.write(bytes(_PROBE))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno in FULL:
                    return False
    return True
