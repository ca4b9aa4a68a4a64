"""What the command says beside its tables, and files that are named on its command line, checked before the work."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.board.visible import visible

if TYPE_CHECKING:
    from leaderboard.storage import NotWritable

OWN = ("/dev/", "/proc/")
"""Where the system keeps a process's own files, such as what `/dev/stdout` stands for."""
ELSEWHERE = "name another place, this one cannot be written"


def say(text: str) -> None:
    """Print a line on standard output."""
    print(visible(text))


def notice(what: object) -> None:
    """Say something about what is shown, beside it: a line on standard error."""
    print(f"regrade: {visible(str(what))}", file=sys.stderr)


def output_file(path: Path, example: str) -> Path:
    """A file that can be written, or an output that this process has already: `/dev/stdout`.

    Args:
        example: name of such a file, for the message about a folder.

    Raises:
        NotWritable: it is a folder or a pipe, which might have no reader, or its folder cannot be made or written to.
    """
    status = _status(path)
    if status is None:
        _check_folder(path.absolute().parent, path)
    elif stat.S_ISDIR(status.st_mode):
        raise _error(path, errno.EISDIR, f"name a file, such as {path / example}: a folder cannot be written")
    elif stat.S_ISREG(status.st_mode):
        _check_folder(Path(os.path.realpath(path)).parent, path)
    elif not stat.S_ISCHR(status.st_mode) and not os.path.realpath(path).startswith(OWN):
        raise _not_written(path, "it is a pipe or the like", "name a file, or /dev/stdout")
    return path


def output_folder(path: Path) -> Path:
    """A folder that can be written to, or be made.

    Raises:
        NotWritable: it is something else, or cannot be made or written to.
    """
    status = _status(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise _error(path, errno.ENOTDIR, "name a folder")
    _check_folder(path if status else path.absolute().parent, path)
    return path


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _error(path, error.errno or errno.EIO, ELSEWHERE) from None


def _check_folder(folder: Path, path: Path) -> None:
    """Check that a folder, or the nearest one above it that is there, can be written to: missing ones are made."""
    while not folder.exists() and folder != folder.parent:
        if folder.is_symlink():
            raise _error(path, errno.ENOENT, ELSEWHERE)
        folder = folder.parent
    if not folder.is_dir():
        raise _error(path, errno.ENOTDIR, ELSEWHERE)
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        raise _error(path, errno.EROFS if read_only else errno.EACCES, ELSEWHERE)


def _error(path: Path, number: int, advice: str) -> NotWritable:
    return _not_written(path, os.strerror(number), advice)


def _not_written(path: Path, why: str, advice: str) -> NotWritable:
    from leaderboard.storage import NotWritable

    return NotWritable(f"{path}: not written, {why}. What to do: {advice}")
