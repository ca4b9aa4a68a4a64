"""The command's end by a signal: Ctrl-C, SIGTERM, or the terminal that is closed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suite.cli.common import Progress

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}

AGAIN = 1.0
"""Seconds within which a second signal is taken for the same one: a terminal and a parent process may both send it."""

_received: list[tuple[signal.Signals, float]] = []


class Stopped(BaseException):
    """A signal stopped a verb; the message says what is done and how to go on. Internal: `main` exits with 128 + it."""


def word() -> str:
    """How the command was stopped, for the first words of a message."""
    return WORDS[_received[0][0].name] if _received else WORDS["SIGINT"]


def exit_code() -> int | None:
    """The exit code that shells expect of a command that a signal stopped: 130 after Ctrl-C; None if none did."""
    return 128 + _received[0][0] if _received else None


def unfinished(done: int, total: int) -> str:
    """What is done of a sweep that broke off, what is missing, and how to go on."""
    counts = f"{done} of {total} trials are done, {total - done} are missing. " if total else ""
    return f"{counts}The same command goes on where this one stopped: what is in the store is not run again"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Context in which the first of these signals raises KeyboardInterrupt, and a later one ends the process at once.

    A signal that is ignored stays ignored (`nohup`, a job in the background of a script). The exception is Python's
    own, because libraries leave their loops for it and for no other.
    """
    _received.clear()
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        if not _received:
            _received.append((signal.Signals(number), time.monotonic()))
            raise KeyboardInterrupt
        if time.monotonic() - _received[0][1] > AGAIN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


@contextmanager
def told_how_to_go_on(progress: Progress) -> Iterator[None]:
    """Context that adds to a signal or an error that ends a sweep: what is done, what is missing, and how to go on."""
    from suite.config.errors import RequestError
    from tasks.task import TaskError

    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"{word()}: {unfinished(progress.done, progress.total)}") from None
    except Exception as error:
        if isinstance(error, RequestError) and not isinstance(error, TaskError):
            raise  # the same command would not go on; it does once a task's data is there and right
        error.add_note(unfinished(progress.done, progress.total))
        raise
