"""What goes wrong and explains itself: the message says what to change, and the command needs no traceback."""

from __future__ import annotations


class SpecError(ValueError):
    """The request cannot be carried out as it stands. Raised before any work begins; the command exits with 2."""


class StageError(RuntimeError):
    """A stored result cannot be read or written. The message names the file and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read. The message names the file and what to do."""


class EngineError(RuntimeError):
    """An engine could not be started, could not answer, or was lost again and again over the same question."""
