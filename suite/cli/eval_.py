"""`regrade eval`: the numbers of a checkpoint on a task, without a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.cli.checkpoint import (
    Anchor,
    CheckpointName,
    Device,
    Dtype,
    Limit,
    TaskName,
    TemplateName,
    Threads,
    measured,
)
from suite.cli.common import STORE, Json, StoreDir, console, number, print_json, table


def eval_(
    checkpoint: CheckpointName,
    task: TaskName,
    retrained: Anchor = None,
    target: Anchor = None,
    split: Annotated[str, typer.Option(help="dev, test, or all: the questions of both, as published.")] = "all",
    also: Annotated[list[str] | None, typer.Option(help="An extra: mmlu, ...; give it several times.")] = None,
    limit: Limit = None,
    dtype: Dtype = "float32",
    template: TemplateName = None,
    device: Device = "auto",
    threads: Threads = 1,
    store: StoreDir = STORE,
    as_json: Json = False,
) -> None:
    """Ask a checkpoint a task's questions and print every number. What was asked before is not asked again."""
    from suite.records import BOTH_SPLITS
    from suite.settings import SpecError
    from tasks.task import Split

    if split not in (*Split, BOTH_SPLITS):
        raise SpecError(f"--split {split}: unknown (allowed: {', '.join((*Split, BOTH_SPLITS))})")
    found = measured(
        checkpoint,
        task,
        {"target": target, "retrained": retrained},
        list(Split) if split == BOTH_SPLITS else [split],
        {"attacks": (), "limit": limit, "also": also or ()},
        {"dtype": dtype, "template": template},
        {"device": device, "threads": threads},
        store,
    )
    shown = [row for row in found.rows if row["split"] == split]
    if as_json:
        print_json(shown)
        return
    table(
        f"{Path(checkpoint).name} on {task}, {split}",
        ["probe", "metric", "value", "± error", "questions"],
        [
            [row["probe"], row["metric"], number(row["value"], 4), number(row["stderr"], 4), str(row["n"])]
            for row in shown
        ],
    )
    for row in shown:
        if row["reason"]:
            console().print(f"{row['probe']} {row['metric']}: {row['reason']}", style="dim", soft_wrap=True)
