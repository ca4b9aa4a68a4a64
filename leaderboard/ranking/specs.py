"""The settings in the column `spec` of a trial, as far as it has any: it is text that anybody may have written."""

from __future__ import annotations

import json
from typing import Any

from tasks.plain_text import once

DEEPEST = 50
"""Levels of a spec that is read; a spec of this suite has five."""


def settings_of(spec: str | None) -> dict[str, Any]:
    """Values by dotted path; none where the text is damaged: no JSON, no object, a key twice, or nested too deep."""
    try:
        found = json.loads(spec or "{}", object_pairs_hook=once)
    except (ValueError, RecursionError):
        return {}
    settings: dict[str, Any] = {}
    level: list[tuple[str | None, Any]] = [("", found)] if isinstance(found, dict) else []
    for _ in range(DEEPEST):
        below: list[tuple[str | None, Any]] = []
        for path, value in level:
            if isinstance(value, dict) and path is not None:
                below += [(f"{path}.{name}" if path else name, inner) for name, inner in value.items()]
                continue
            if path:
                settings[path] = value
            if isinstance(value, dict | list):  # inside a list no value has a path, and all may be deep
                below += [(None, inner) for inner in (value.values() if isinstance(value, dict) else value)]
        level = below
    return {} if level else {path: settings[path] for path in sorted(settings, key=lambda path: path.split("."))}
