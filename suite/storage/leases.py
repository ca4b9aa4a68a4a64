"""Leases: a polite `I am working on this`. They save work; nothing depends on them.

A lease is a file that its holder touches every few seconds. Another process takes it over when the holder is known to
be dead (same machine) or has been silent for long (any machine), judged by the waiter's own clock, because the clocks
of two machines differ.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT = 2.0
SILENCE = 30.0
"""Seconds without a heartbeat after which a holder counts as gone: many times the heartbeat, for a slow NFS."""
POLL = 0.05, 1.0
"""Shortest and longest seconds between two looks at another's lease."""


class Leases:
    """Leases under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.silence = SILENCE
        self._mine: dict[Path, str] = {}
        self._heart: threading.Thread | None = None

    @contextmanager
    def hold(self, name: str, until: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Hold a lease, after waiting for whoever has it; or stop waiting as soon as `until` is true.

        Yields:
            Whether the lease is held (false when `until` came true first).
        """
        path = self.root / name
        held = self._acquire(path, until)
        try:
            yield held
        finally:
            if held:
                self._release(path)

    def free(self, name: str) -> bool:
        """Whether nobody alive on this machine, and nobody seen elsewhere, holds the lease now."""
        path = self.root / name
        try:
            return path in self._mine or _dead(path.read_text())
        except OSError:
            return True

    def _acquire(self, path: Path, until: Callable[[], bool]) -> bool:
        self.root.mkdir(parents=True, exist_ok=True)
        token = json.dumps(
            {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid()), "id": uuid.uuid4().hex}
        )
        seen, since, pause = None, time.monotonic(), POLL[0]
        while True:
            if self._take(path, token):
                return True
            if until():
                return False
            try:
                state = (path.read_text(), path.stat().st_mtime_ns)
            except OSError:
                continue  # released between the two looks
            if state != seen:
                seen, since = state, time.monotonic()
            if _dead(state[0]) or time.monotonic() - since > self.silence:
                with suppress(OSError):
                    if path.read_text() == state[0]:  # nobody took it over meanwhile
                        path.unlink()
                continue
            time.sleep(pause)
            pause = min(2 * pause, POLL[1])

    def _take(self, path: Path, token: str) -> bool:
        # Written aside and linked, so that a lease is never seen half-written.
        draft = path.with_name(f".{uuid.uuid4().hex}")
        draft.write_text(token)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        self._mine[path] = token
        if self._heart is None or not self._heart.is_alive():
            self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
            self._heart.start()
        return True

    def _release(self, path: Path) -> None:
        token = self._mine.pop(path)
        with suppress(OSError):
            if path.read_text() == token:
                path.unlink()

    def _beat(self) -> None:
        while self._mine:
            for path in list(self._mine):
                with suppress(OSError):
                    os.utime(path)
            time.sleep(HEARTBEAT)


def _dead(token: str) -> bool:
    """Whether the holder ran on this machine and does not any more."""
    try:
        holder = json.loads(token)
        here, pid, born = holder["host"] == platform.node(), holder["pid"], holder["born"]
    except (ValueError, KeyError, TypeError):
        return False
    return here and _born(pid) != born


def _born(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since boot; None when it does not run.

    Together with the pid it names a process for good: pids are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None if Path("/proc").is_dir() else "unknown"  # no /proc (macOS): rely on the heartbeat
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]  # a zombie does not work any more
