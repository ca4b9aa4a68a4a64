"""Errors whose message says what to change, so that the command shows it without a traceback."""

from __future__ import annotations


class SpecError(ValueError):
    """The settings or arguments cannot be used as given. Raised before any work begins; the command exits with 2."""


class StageError(RuntimeError):
    """A stored result cannot be read or written. The message names the file and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read. The message names the file and what to do."""


class EngineError(RuntimeError):
    """An engine could not be started, failed on a prompt, or was lost repeatedly on the same one."""
