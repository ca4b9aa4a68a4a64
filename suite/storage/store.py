"""The store: stages and the board, under one folder."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from leaderboard.board.store import Board
from leaderboard.storage import FULL, NO_HARD_LINKS, DiskFull, NotWritable, has_hard_links
from suite.config.errors import StageError
from suite.storage.location import store_folder
from suite.storage.stages import StageStore


class Store:
    """One folder with the stage store and the board, for any number of processes and machines.

    Args:
        root: the folder, as a path or as `file:///path`.

    Raises:
        SpecError: the name is not a folder's.
        NotWritable: the folder cannot be created or written to, or its file system has no hard links.
        StageError: the disk is full.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = store_folder(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise StageError(f"{self.root}: the disk is full. Free some space, or name another --store") from None
            raise NotWritable(f"--store {self.root}: {error.strerror}. Name a folder that can be written to") from None
        if not os.access(self.root, os.W_OK):
            raise NotWritable(f"--store {self.root}: {os.strerror(errno.EACCES)}. Name a folder that can be written to")
        _check_hard_links(self.root)
        self.stages = StageStore(self.root)
        self.board = Board(self.root / "board")


@cache
def _check_hard_links(root: Path) -> None:
    """Check once per process, before anything is computed, that the file system has hard links.

    Raises:
        NotWritable: it has none.
    """
    with suppress(DiskFull):  # a full store can still be read; a later write reports the full disk
        if not has_hard_links(root):
            raise NotWritable(f"--store {root}: {NO_HARD_LINKS}")
