"""The column `plugins`: which packages brought the methods of a row that are not Regrade's own."""

from __future__ import annotations

import json
from collections.abc import Mapping


def as_column(packages: Mapping[str, str | None]) -> str | None:
    """Canonical JSON of packages, with their versions, by what they bring; null where all is Regrade's own."""
    known = {what: package for what, package in packages.items() if package}
    return json.dumps(known, sort_keys=True) if known else None


def package_of(what: str, column: str | None) -> str | None:
    """The package that brought the `task`, the `optimizer`, ... of a row; None if none did, or the text is no such."""
    try:
        found = json.loads(column or "{}")
    except (ValueError, RecursionError):
        return None
    package = found.get(what) if isinstance(found, dict) else None
    return package if isinstance(package, str) else None
