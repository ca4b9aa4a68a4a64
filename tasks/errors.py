"""Errors whose message is enough: a sentence that says what happened and what to do. The command shows it alone.

A program catches them by kind, and `exit_code` is what the command ends with. Any other exception that reaches a user
is a bug of ours. Those that one part of Regrade raises for another one say in their docstrings that they are internal.
"""

from __future__ import annotations

from typing import ClassVar


class RegradeError(Exception):
    """Something ended in a way that its message explains: it ran, and failed."""

    exit_code: ClassVar[int] = 1


class RequestError(RegradeError):
    """The request cannot be carried out as it is, which was found before anything was computed. Who asks changes the
    request, or what it names, and asks again."""

    exit_code = 2


class MissingError(RequestError):
    """What the request needs is not here and not to be had: a file, a folder, a model, data, a GPU, a board with
    trials. Who asks gets it, says where it is, or does without."""
