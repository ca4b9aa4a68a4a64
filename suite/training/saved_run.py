"""What a run needs to go on after a kill: its weights, its step, and the state of everything that changes with a step.

All of it is one file that is replaced at once, so a kill at any instant leaves the last complete one. It is read as
plain tensors and values: nothing that it carries is executed.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from leaderboard.storage import StorageError, replace_file

SHARE = 0.05
"""Largest part of a run that saving it may take."""


class HasState(Protocol):
    """What changes during a run, and says so: `Stateful`, and counts of queries."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


class SavedRun:
    """The saved state of a run, in a folder of its own.

    Args:
        folder: made when the run is first saved.
        minutes: time between two saves; longer where saving would take more than `SHARE` of the run.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder = folder
        self._file = folder / "state.pt"
        self._seconds = 60 * minutes
        self._last = time.monotonic()
        self._took = 0.0
        self._beside: set[str] = set()
        """Checkpoints whose copies beside the state are whole."""

    @property
    def exists(self) -> bool:
        return self._file.exists()

    def load(self, parameters: Sequence[Tensor], parts: Mapping[str, HasState]) -> dict[str, Any]:
        """Continue from what was saved.

        Returns:
            What was saved with it as `own`.

        Raises:
            Exception: the file is damaged, or not of this run. What it was loaded into may have changed.
        """
        saved = torch.load(self._file, map_location=parameters[0].device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        with torch.no_grad():
            for parameter, weight in zip(parameters, saved["weights"], strict=True):
                parameter.copy_(weight)
        return saved["own"]

    def due(self) -> bool:
        """Whether it is time to save."""
        waited = time.monotonic() - self._last
        return waited >= self._seconds and waited * SHARE >= self._took

    def save(
        self,
        parameters: Sequence[Tensor],
        parts: Mapping[str, HasState],
        own: dict[str, Any],
        kept: Sequence[Path] = (),
    ) -> None:
        """Save the run as it is now. Where there is no space, only what was done since the last save can be lost.

        Args:
            own: plain numbers, texts, lists and dicts.
            kept: folders of checkpoints that the run has written so far; they are copied beside the state.
        """
        started = time.monotonic()
        content = {
            "weights": [parameter.detach() for parameter in parameters],
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "own": own,
        }
        try:
            for checkpoint in kept:
                if checkpoint.name not in self._beside:
                    shutil.rmtree(self.folder / checkpoint.name, ignore_errors=True)  # of a writer that was killed
                    shutil.copytree(checkpoint, self.folder / checkpoint.name)
                    self._beside.add(checkpoint.name)
            replace_file(self._file, lambda file: torch.save(content, file))
        except (OSError, StorageError) as error:
            warnings.warn(f"the run is not saved: {error}", stacklevel=2)
        self._last = time.monotonic()
        self._took = self._last - started

    def bring(self, checkpoint: str, into: Path) -> None:
        """Copy a checkpoint that was saved with the state into a folder."""
        shutil.copytree(self.folder / checkpoint, into / checkpoint)
        self._beside.add(checkpoint)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
