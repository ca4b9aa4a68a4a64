"""What is forgotten, and how it is measured. Imports neither torch nor Ray."""

from __future__ import annotations

from tasks import pocket
from tasks.task import (
    Example,
    Headline,
    Item,
    Probe,
    ProbeKind,
    Sample,
    Split,
    Style,
    Subset,
    Task,
    TaskEntry,
    attack_name,
)

__all__ = [
    "TASKS",
    "Example",
    "Headline",
    "Item",
    "Probe",
    "ProbeKind",
    "Sample",
    "Split",
    "Style",
    "Subset",
    "Task",
    "TaskEntry",
    "attack_name",
]

TASKS: dict[str, TaskEntry] = {entry.name: entry for entry in (pocket.ENTRY,)}
