"""Checks that a task's answers are in a script that its metrics read, before anything is computed.

The published ROUGE knows the letters a to z and the digits 0 to 9 (`tasks.scoring.rouge`). Of answers in other scripts
it has no number, and neither has a mean with one such answer.
"""

from __future__ import annotations

from tasks.plain_text import shown
from tasks.task import Task, TaskError

OFFICIAL = "A translated benchmark is a task of its own: docs/tasks.md#custom"
"""What to do about a published task; its metrics are fixed."""


def check_readable(task: Task, remedy: str = OFFICIAL) -> Task:
    """The task, whose references all have a number by every ROUGE that is asked for.

    Args:
        remedy: what to do, a sentence without its full stop.

    Raises:
        TaskError: one has none; names its file and row, the metric, and the variant that reads it.
    """
    from tasks.scoring.rouge import UNICODE, legible, readable  # imported here: it takes a while

    for probe in task.probes:
        published = [metric for metric in probe.metrics if metric in UNICODE]
        rouges = [*published, *(metric for metric in probe.metrics if metric in UNICODE.values())]
        for item in probe.items if rouges else ():
            if not readable(item.reference):
                raise TaskError(
                    f"{item.where}: {rouges[0]} of {probe.name} compares words, and no letter or digit is in the "
                    f"answer {shown(item.reference)}. Take the row out"
                )
            if published and not legible(item.reference):
                raise TaskError(
                    f"{item.where}: {published[0]} of {probe.name} reads a to z and 0 to 9 alone, and less than half "
                    f"of the answer {shown(item.reference)} is that. {UNICODE[published[0]]} reads every script. "
                    f"{remedy}"
                )
    return task
