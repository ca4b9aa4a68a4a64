"""`regrade eval`: the numbers of a checkpoint on a task, without a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.cli.common import STORE, Json, StoreDir, console, number, print_json, table

Checkpoint = Annotated[str, typer.Argument(help="Folder, or hub id owner/model[@revision].", show_default=False)]
TaskName = Annotated[str, typer.Option("--task", help="Whose questions are asked.", show_default=False)]
Anchor = Annotated[str | None, typer.Option(help="Checkpoint to compare with, where a metric does.")]


def eval_(
    checkpoint: Checkpoint,
    task: TaskName,
    retrained: Anchor = None,
    target: Anchor = None,
    split: Annotated[str, typer.Option(help="dev, test, or all: the questions of both, as published.")] = "all",
    also: Annotated[list[str] | None, typer.Option(help="An extra: mmlu, ...; give it several times.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per probe and split, the first ones.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    template: Annotated[str | None, typer.Option(help="bare, plain or chat; the tokenizer's own by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
    store: StoreDir = STORE,
    as_json: Json = False,
) -> None:
    """Ask a checkpoint a task's questions and print every number. What was asked before is not asked again."""
    from suite.measuring import measure_checkpoint
    from suite.records import BOTH_SPLITS
    from suite.settings import SpecError, nearest, parse
    from suite.spec import MeasureSpec, ModelSpec, RuntimeSpec
    from suite.store import Store
    from tasks import TASKS
    from tasks.task import Split

    if task not in TASKS:
        raise SpecError(f"--task {task}: unknown.{nearest(task, TASKS)} (see: regrade ls tasks)")
    if split not in (*Split, BOTH_SPLITS):
        raise SpecError(f"--split {split}: unknown (allowed: {', '.join((*Split, BOTH_SPLITS))})")
    splits = list(Split) if split == BOTH_SPLITS else [split]
    measured = measure_checkpoint(
        checkpoint,
        task,
        parse(ModelSpec, {"name": checkpoint, "dtype": dtype, "template": template}, "--"),
        Store(store).stages,
        anchors={name: path for name, path in (("target", target), ("retrained", retrained)) if path},
        measure=parse(MeasureSpec, {"attacks": (), "splits": splits, "limit": limit, "also": also or ()}, "--"),
        runtime=parse(RuntimeSpec, {"device": device, "threads": threads}, "--"),
    )
    shown = [row for row in measured.rows if row["split"] == split]
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
