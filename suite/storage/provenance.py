"""Provenance of rows: the version and the code of the suite, the machine, the time."""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_digest() -> str:
    """SHA-256 of the project's source. Recorded, but not in keys: a stage's version says when its numbers change."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in ("leaderboard", "suite", "tasks"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def suite_version() -> str:
    try:
        return version("regrade")
    except PackageNotFoundError:
        return "0"


def observed() -> dict[str, str | int]:
    """Provenance columns of a row."""
    return {
        "code": code_digest(),
        "host": platform.node(),
        "written_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
