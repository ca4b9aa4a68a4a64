"""A sweep on Ray in a child of this process, which says how the child ended if the child could not.

Ray ends the process that leads a sweep at once, by `_exit`, when it loses the cluster's head or the machine's raylet;
no exception, no signal and no exit handler runs. The kernel does the same when memory is full.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from suite.cli.stopping import SIGNALS, unfinished

ORDERLY = "ended"
"""The child's last line: whatever it had to say, it says itself."""


@contextmanager
def supervised() -> Iterator[Callable[[int, int], None]]:
    """Context that is entered in a child of this process only; this process ends as the child does.

    Enter it before anything starts a thread.

    Yields:
        A function that takes the number of trials that are done and of all trials, for the last sentence.
    """
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child:
        os.close(to_parent)
        os.close(from_parent)
        _wait(child, from_child)
    os.close(from_child)
    os.close(to_child)
    threading.Thread(target=_end_with_parent, args=(from_parent,), daemon=True).start()
    try:
        yield lambda done, total: _tell(to_parent, f"{done} {total}")
    finally:
        _tell(to_parent, ORDERLY)


def _tell(pipe: int, line: str) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, f"{line}\n".encode())


def _end_with_parent(pipe: int) -> None:
    """Wait until the parent has ended, even by SIGKILL, and end this process too."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(child: int, from_child: int) -> NoReturn:
    """Wait for the child's end, and end with its code."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: _pass_on(child, number))
    with open(from_child) as lines:
        last = "0 0"
        for line in lines:
            last = line.strip()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if last == ORDERLY:
        sys.exit(code if code >= 0 else 128 - code)
    how = f"code {code}" if code >= 0 else signal.Signals(-code).name
    message = (
        f"the process that led the sweep on Ray ended at once ({how}). Ray ends it when the head of the cluster or "
        "this machine's part of it is lost, and the kernel when memory is full"
    )
    print(f"regrade: {message}. {unfinished(*map(int, last.split()))}", file=sys.stderr)
    sys.exit(1)


def _pass_on(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)
