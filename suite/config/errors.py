"""Errors by kind: whoever runs Regrade from a program catches what can be dealt with. The command shows messages alone.

Errors of a task's data are in `tasks.task`, those of a board and of writing in `leaderboard.board.files` and
`leaderboard.storage`; all have the base `RegradeError`.
"""

from __future__ import annotations

from tasks.errors import MissingError, RegradeError, RequestError

__all__ = [
    "CheckpointError",
    "ClusterError",
    "EngineError",
    "MissingError",
    "ModelError",
    "NotInstalledError",
    "RegradeError",
    "RequestError",
    "SpecError",
    "StageError",
    "UnsuitableError",
]


class SpecError(RequestError, ValueError):
    """Settings or arguments cannot be used as given. Who asks changes the one that the message names."""


class UnsuitableError(SpecError):
    """Settings that are right in themselves do not go with this model or this task, such as an attack on layers that
    the model does not have. Who asks takes others, or another model."""


class NotInstalledError(MissingError):
    """A package is not installed, or in a build that this machine cannot use. The message says how to install it."""


class ModelError(RequestError):
    """A file in a model's folder is refused before weights are read: it is damaged, asks for code to be executed, or
    does not fit the others. Its owner puts it right, or who asks names another model."""


class ClusterError(RequestError):
    """No cluster answers at the address, or there is no room for trials and engines on it or on this machine. Its
    operator starts or enlarges it, or who asks needs less."""


class StageError(RegradeError, RuntimeError):
    """A stored result cannot be read or written. The message names the file and what to do."""


class CheckpointError(RegradeError, RuntimeError):
    """The weights of a checkpoint, or an adapter's settings, cannot be read. The message names the file and what to
    do."""


class EngineError(RegradeError, RuntimeError):
    """An engine could not be started, failed on a prompt, or was lost repeatedly on the same one."""
