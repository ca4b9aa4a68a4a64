"""What is forgotten, and how it is measured. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Callable

from tasks import pocket, tofu
from tasks.task import (
    Example,
    Headline,
    Item,
    Need,
    Probe,
    ProbeKind,
    Sample,
    Split,
    Style,
    Subset,
    Summary,
    Task,
    TaskEntry,
    TaskError,
    Zero,
    attack_name,
    limited,
)

__all__ = [
    "EXTRAS",
    "TASKS",
    "Example",
    "Headline",
    "Item",
    "Need",
    "Probe",
    "ProbeKind",
    "Sample",
    "Split",
    "Style",
    "Subset",
    "Summary",
    "Task",
    "TaskEntry",
    "TaskError",
    "Zero",
    "attack_name",
    "limited",
]

EXTRAS: dict[str, Callable[[Task], Task]] = {}

TASKS: dict[str, TaskEntry] = {entry.name: entry for entry in (pocket.ENTRY, *tofu.ENTRIES)}
