"""The benchmarks: what is forgotten, and how it is measured. Imports neither torch nor Ray."""

from __future__ import annotations

from tasks import muse, pocket, rwku, tofu, wmdp
from tasks.custom import task as custom
from tasks.extras import EXTRAS
from tasks.registry import TaskRegistry
from tasks.task import (
    Example,
    Headline,
    Item,
    MissingDataError,
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
    attack_seed,
    limited,
)

__all__ = [
    "EXTRAS",
    "TASKS",
    "Example",
    "Headline",
    "Item",
    "MissingDataError",
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
    "attack_seed",
    "limited",
]

TASKS = TaskRegistry(
    (pocket.ENTRY, *tofu.ENTRIES, *muse.ENTRIES, *wmdp.ENTRIES),
    (rwku.FAMILY, custom.FAMILY),
)
