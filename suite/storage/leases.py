"""Leases: files that tell other processes what this one is working on. They save work; correctness never needs them.

A holder touches its lease every few seconds. Another process takes it over when the holder is known to be dead (same
machine) or has sent no heartbeat for long (any machine). The waiting process measures this by its own clock, because
the clocks of two machines differ.
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
from typing import Any

from leaderboard.storage import DiskFull, FolderStorage

HEARTBEAT = 2.0
SILENCE = 30.0
"""Seconds without a heartbeat after which a holder counts as gone: many heartbeats, because NFS may be slow."""
POLL = 0.05, 1.0
"""Shortest and longest seconds between two checks of a lease that another process holds."""


class Leases:
    """Leases under one folder."""

    def __init__(self, root: Path) -> None:
        self.silence = SILENCE
        self._files = FolderStorage(root)
        self._mine: dict[str, bytes] = {}
        self._fresh: set[Path] = set()
        self._heart: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, name: str, until: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Hold a lease, after waiting for its current holder; or stop waiting as soon as `until` is true.

        Yields:
            Whether the lease is held: false when `until` became true first, or when the disk is full. The work may go
            on either way, since it must be correct without a lease.

        Raises:
            StorageError: the folder cannot be written to.
        """
        try:
            held = self._acquire(name, until)
        except DiskFull:
            held = False
        try:
            yield held
        finally:
            if held:
                self._release(name)

    @contextmanager
    def kept_fresh(self, folder: Path) -> Iterator[None]:
        """Touch a folder with every heartbeat, so that other processes do not remove it as abandoned."""
        with self._beating():
            self._fresh.add(folder)
        try:
            yield
        finally:
            self._fresh.discard(folder)

    def free(self, name: str) -> bool:
        """Whether no live process of this machine, and no process of another one, holds the lease now."""
        try:
            return name in self._mine or _dead(self._read(name))
        except OSError:
            return True

    def at_work(self, prefix: str, silence: float) -> bool:
        """Whether some process holds a lease whose name begins with `prefix`.

        Args:
            silence: seconds without a heartbeat after which a holder on another machine counts as gone. A live process
                of this machine holds its lease even while it is suspended.
        """
        for name in self._files.list(prefix):
            with suppress(OSError):  # released since it was listed
                token = self._read(name)
                if _here(token):
                    if not _dead(token):
                        return True
                elif time.time() - self._files.path(name).stat().st_mtime < silence:
                    return True
        return False

    def _acquire(self, name: str, until: Callable[[], bool]) -> bool:
        holder = {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid()), "id": uuid.uuid4().hex}
        token = json.dumps(holder).encode()
        seen, since, pause = None, time.monotonic(), POLL[0]
        while True:
            if self._take(name, token):
                return True
            if until():
                return False
            try:
                state = (self._read(name), self._files.version(name))
            except OSError:  # released between the two calls
                time.sleep(POLL[0])
                continue
            if state != seen:
                seen, since = state, time.monotonic()
            if _dead(state[0]) or time.monotonic() - since > self.silence:
                with suppress(OSError):
                    if self._read(name) == state[0]:  # no other process took it over meanwhile
                        self._files.delete(name)
                continue
            time.sleep(pause)
            pause = min(2 * pause, POLL[1])

    def _take(self, name: str, token: bytes) -> bool:
        if not self._files.put_if_absent(name, token):
            return False
        with self._beating():
            self._mine[name] = token
        return True

    def _release(self, name: str) -> None:
        token = self._mine.pop(name)
        with suppress(OSError):
            if self._read(name) == token:
                self._files.delete(name)

    def _read(self, name: str) -> bytes:
        with self._files.open(name) as file:
            return file.read()

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Add leases or folders to be touched, and start the heartbeat thread, which ends once there are none."""
        with self._lock:
            yield
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._heart.start()

    def _beat(self) -> None:
        while True:
            with self._lock:
                if not self._mine and not self._fresh:
                    self._heart = None
                    return
                mine, fresh = list(self._mine), list(self._fresh)
            for name in mine:
                with suppress(OSError):
                    self._files.touch(name)
            for folder in fresh:
                with suppress(OSError):
                    os.utime(folder)
            time.sleep(HEARTBEAT)


def _dead(token: bytes) -> bool:
    """Whether the holder was a process of this machine that no longer runs."""
    holder = _holder(token)
    return holder is not None and _here(token) and _born(holder["pid"]) != holder["born"]


def _here(token: bytes) -> bool:
    """Whether the holder is, or was, a process of this machine."""
    holder = _holder(token)
    return holder is not None and holder["host"] == platform.node()


def _holder(token: bytes) -> dict[str, Any] | None:
    """The process that wrote a lease; None where the lease is damaged."""
    try:
        holder = json.loads(token)
        return holder if holder.keys() >= {"host", "pid", "born"} else None
    except (ValueError, AttributeError):
        return None


def _born(pid: int) -> str | None:
    """Start time of a process of this machine, in clock ticks since boot; None when it does not run.

    Together with the pid it identifies a process: pids are reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None if Path("/proc").is_dir() else "unknown"  # no /proc (macOS): rely on the heartbeat
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]  # a zombie is not working any more
