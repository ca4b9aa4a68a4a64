"""File systems of the tests' own: small ones to be filled, and read-only ones."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    """A file system at a folder, by the words of `mount`; the test is skipped where mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def small_disk(folder: Path, size: str) -> AbstractContextManager[Path]:
    """A file system of a size, such as `4m`, in memory."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
