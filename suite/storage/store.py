"""Where everything is kept: stages and the board, under one folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from leaderboard.board.store import Board
from suite.config.settings import SpecError
from suite.storage.stages import StageStore

DEFAULT = "store"


class Store:
    """One folder with the stage store and the board, for any number of processes and machines.

    Raises:
        SpecError: the folder cannot be made or written to.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"--store {self.root}: {error.strerror}. Name a folder that can be written to") from None
        if not os.access(self.root, os.W_OK):
            raise SpecError(f"--store {self.root}: {os.strerror(errno.EACCES)}. Name a folder that can be written to")
        self.stages = StageStore(self.root)
        self.board = Board(self.root / "board")
