"""How bytes become visible: whole, on disk, and under a name that the first writer keeps.

Stages, leases and the board write through `FolderStorage`, and outputs for people and machines through `replace_file`.
No other module renames or links a file. `FolderStorage` asks little, so that an object store with conditional writes
can offer the same methods.

A file is written under a temporary name, synced to disk, and then hard-linked to its own name, which fails where the
name is taken. So the first writer wins without a lock, readers never see half a file, and a writer that is killed
leaves a temporary file at most, which a later writer removes. This needs hard links within a folder and nothing else
of the file system: local disks and NFS have them; FAT, exFAT and object stores mounted as folders do not, and are
refused. Renaming is no replacement for them there: it overwrites, so the last writer would win.
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

WRITABLE = "see that the directory can be written and run again"
NOTHING_LOST = "nothing else is lost"

STALE_SECONDS = 3600.0
"""Age of a temporary file at which its writer is taken for dead. Writing takes seconds; an hour forgives clocks."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a write that finds no more room: on the disk, in the user's quota, below the limit of a file's size."""

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
"""Bytes that are written to see whether a disk is full: more than a file system rounds up to."""


class StorageError(Exception):
    """Something could not be written. The message names the file and says what to do next."""


class DiskFull(StorageError):
    """There is no more room. What was there before is still there."""


class NotWritable(StorageError):
    """Files cannot be written at this place, whoever tries: another one has to be named."""


class FolderStorage:
    """Named bytes under one folder, for any number of processes and machines that share it.

    A name is a relative path with `/`. What stands under it is whole, and stays until it is deleted. Names that begin
    with a dot belong to writers that are not done, and are never listed.

    Args:
        root: the folder; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_if_absent(
        self, name: str, content: bytes | memoryview | Path, damaged: Callable[[], bool] = lambda: False
    ) -> bool:
        """Put bytes under a name that nothing stands under yet; whether these are the bytes that stand there now.

        Where it returns false another writer was first, and its bytes are to be used instead.

        Args:
            content: the bytes, or a file that has them and will not change; such a file is linked, else copied.
            damaged: asked where something stands there already: whether it is to be replaced all the same.

        Raises:
            DiskFull: there is no more room.
            NotWritable: the folder cannot be written to, or its file system has no hard links.
            StorageError: writing failed for another reason.

        After any of them nothing is left behind.
        """
        path = self.path(name)
        with _told(path, WRITABLE, NOTHING_LOST):
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
        """Make a new folder, for files that libraries write by themselves and that something put here will name.

        Raises:
            DiskFull, NotWritable, StorageError: it cannot be made.
        """
        with _told(self.path(name), WRITABLE, NOTHING_LOST):
            self.path(name).mkdir(parents=True)

    def open(self, name: str) -> BinaryIO:
        """The bytes under a name.

        Raises:
            FileNotFoundError: there are none.
            OSError: they cannot be read.
        """
        return self.path(name).open("rb")

    def exists(self, name: str) -> bool:
        """Whether something stands under a name."""
        return self.path(name).exists()

    def list(self, prefix: str = "", suffix: str = "") -> Sequence[str]:
        """Names that begin and end so, in order. Those of one folder: `a/` lists what is directly in `a`."""
        folder, _, begins = prefix.rpartition("/")
        try:
            found = os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        inside = f"{folder}/" if folder else ""
        return sorted(
            f"{inside}{name}"
            for name in found
            if name.startswith(begins) and name.endswith(suffix) and not name.startswith(".")
        )

    def delete(self, name: str) -> None:
        """Take away what stands under a name, if anything does.

        Raises:
            OSError: it cannot be deleted.
        """
        self.path(name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Give what stands under a name another version, by the clock of whoever keeps the files.

        Raises:
            OSError: there is nothing, or it cannot be changed.
        """
        os.utime(self.path(name))

    def version(self, name: str) -> tuple[int, ...]:
        """Changes whenever something else is put under the name, and with every touch.

        Raises:
            OSError: there is nothing, or it cannot be asked.
        """
        found = self.path(name).stat()
        return found.st_ino, found.st_mtime_ns

    def path(self, name: str) -> Path:
        """The file under a name, for libraries that read files by themselves."""
        return self.root / name


def replace_file(path: Path, content: bytes | str) -> None:
    """Write an output file as a whole or not at all: what was there stays until all of the new one is on disk.

    A path that is no ordinary file (`/dev/stdout`, a pipe) is written to as it is.

    Raises:
        DiskFull: there is no more room.
        NotWritable: no file can be written there.
        StorageError: writing failed for another reason.
    """
    content = content.encode() if isinstance(content, str) else content
    with _told(path, "name another place, this one cannot be written", "what was there is still there"):
        target = Path(os.path.realpath(path))  # the file behind a symbolic link, as any program that writes to one does
        before = target.stat().st_mode if target.exists() else None
        if before is not None and not stat.S_ISREG(before) and not stat.S_ISDIR(before):
            target.write_bytes(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with _draft(target.parent, content) as draft:
            if before is not None:
                draft.chmod(stat.S_IMODE(before))
            os.replace(draft, target)
            sync_folder(target.parent)


def has_hard_links(folder: Path) -> bool:
    """Ask the file system of a folder whether it has hard links, by making one.

    Raises:
        DiskFull, NotWritable, StorageError: the folder cannot be written to, so it cannot be asked.
    """
    with _told(folder, WRITABLE, NOTHING_LOST):
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
    """Whether writing into a folder failed because there is no more room, whatever a library made of that error.

    Libraries raise errors of their own: some repeat the system's words (safetensors), some say only that they wrote
    less than they wanted (torch, numpy). So it is tried whether the last file of the folder can still grow.

    Args:
        folder: about to be deleted: what is written for trying is left there.
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
    """Wait until a folder's names are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(path: Path, advice: str, kept: str) -> Iterator[None]:
    """Turn an error of the system into one that names the file and says what to do and what is not lost."""
    try:
        yield
    except OSError as error:
        kind = NotWritable if error.errno in _UNWRITABLE else StorageError
        if error.errno in FULL:
            kind, advice = DiskFull, "make room there and run again"
        in_the_way = error.errno == errno.EEXIST  # said of a file where a folder should be made
        reason = os.strerror(errno.ENOTDIR) if in_the_way else error.strerror or str(error)
        raise kind(f"{path}: not written, {reason}. What to do: {advice}; {kept}") from error


def _temporary(folder: Path) -> Path:
    return folder / f".{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}.tmp"


@contextmanager
def _draft(folder: Path, content: bytes | memoryview | Path) -> Iterator[Path]:
    """The bytes in a file that nobody looks at, on disk; gone afterwards, if it has not been renamed."""
    draft = _temporary(folder)
    try:
        with draft.open("xb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with suppress(OSError):  # what was written has its name or not; a later writer removes the rest
            draft.unlink(missing_ok=True)


def _linked(draft: Path, path: Path) -> bool:
    """Link our own draft to its name; whether it has it."""
    try:
        os.link(draft, path)
    except OSError as error:
        # NFS may make the link and lose the answer; asked again, it says that the name is taken: by this very file.
        if not _same(draft, path):
            if isinstance(error, FileExistsError):
                return False
            if error.errno in _CANNOT_LINK:
                raise NotWritable(f"{path}: not written, {NO_HARD_LINKS}") from error
            raise
    sync_folder(path.parent)
    return True


def _linked_as_it_is(source: Path, path: Path) -> bool:
    """Link a file that others may know to another name, or a copy of it where no link leads there; whether it has it.

    Of two that link one file to one name at the same time both may be told so: the bytes are the same.
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
    """Remove what killed writers left behind."""
    for name in os.listdir(folder):
        if _TEMPORARY.fullmatch(name):
            with suppress(OSError):  # another writer sweeps too
                path = folder / name
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def _can_grow(folder: Path) -> bool:
    """Whether the file that was written last in a folder, and a new one, can take more bytes."""
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
