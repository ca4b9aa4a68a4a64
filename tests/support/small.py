"""A trial that takes a second: the real path with a model too small to remember anything."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "task": "pocket",
    "model": {"tiny": {"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 512}},
    "anchors": {"epochs": 1, "lr": 3e-3},
    "objective": {"name": "npo"},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "steps": 4,
    "batch_size": 4,
}
