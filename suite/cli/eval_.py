"""`regrade eval`: the metrics of a checkpoint on a task, without a trial."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from suite.cli.checkpoint import (
    Anchor,
    CheckpointName,
    Device,
    Dtype,
    Limit,
    TaskName,
    TemplateArgs,
    TemplateName,
    TensorParallel,
    Threads,
    check_task,
    engine_settings,
    measure_from_options,
    model_settings,
)
from suite.cli.common import STORE, EngineName, Json, StoreDir, number, print_json, table
from suite.cli.outputs import say


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
    template_arg: TemplateArgs = None,
    device: Device = "auto",
    threads: Threads = 1,
    engine: EngineName = None,
    tensor_parallel: TensorParallel = 1,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Ask two engines, and print how they agree instead of the numbers.")
    ] = False,
    store: StoreDir = STORE,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint on a task and print every metric. Results that are in the store are reused."""
    from suite.config.errors import SpecError
    from suite.evaluation.scoring import BOTH_SPLITS
    from suite.storage.location import store_folder
    from tasks.plain_text import cut
    from tasks.task import Split

    store_folder(store)
    if split not in (*Split, BOTH_SPLITS):
        raise SpecError(f"--split {cut(split)}: unknown (allowed: {', '.join((*Split, BOTH_SPLITS))})")
    splits = list(Split) if split == BOTH_SPLITS else [split]
    if cross_check:
        _cross_check(
            checkpoint,
            task,
            {"splits": splits, "limit": limit or CROSS_CHECK_LIMIT, "also": also or ()},
            model_settings(dtype, template, template_arg),
            {"device": device, "threads": threads},
            engine,
            tensor_parallel,
            as_json,
        )
        return
    result = measure_from_options(
        checkpoint,
        task,
        {"target": target, "retrained": retrained},
        splits,
        {"attacks": (), "limit": limit, "also": also or (), **engine_settings(engine, tensor_parallel)},
        model_settings(dtype, template, template_arg),
        {"device": device, "threads": threads},
        store,
    )
    shown = [row for row in result.rows if row["split"] == split]
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
            say(f"{row['probe']} {row['metric']}: {row['reason']}")


CROSS_CHECK_LIMIT = 8
"""Questions per probe of a cross-check, unless --limit is given."""


def _cross_check(
    checkpoint: str,
    task: str,
    measure: dict[str, Any],
    model: dict[str, Any],
    runtime: dict[str, Any],
    engine: str | None,
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """Print how the engine by default and the one that it is checked against agree on a checkpoint."""
    from suite.config.errors import SpecError
    from suite.config.runtime import RuntimeSpec
    from suite.config.settings import nearest, parse
    from suite.engines import ENGINES
    from suite.models.settings import ModelSpec
    from suite.spec.measure import MeasureSpec
    from suite.trials.given_checkpoint import cross_check
    from tasks.plain_text import cut

    check_task(task)
    default, comparable = MeasureSpec().engine, [name for name, kind in ENGINES.items() if kind.cross_checked]
    other = comparable[0] if engine in (None, default) else engine
    if other not in comparable:
        hint = nearest(other, comparable)
        raise SpecError(
            f"--engine {cut(other)}: is not compared with {default}.{hint} (allowed: {', '.join(comparable)})"
        )
    agreements = cross_check(
        checkpoint,
        task,
        parse(ModelSpec, {"name": checkpoint, **model}, "--"),
        parse(MeasureSpec, {**measure, **engine_settings(other, tensor_parallel)}, "--"),
        parse(RuntimeSpec, runtime, "--"),
    )
    if as_json:
        print_json([{**asdict(one), "parted": one.parted} for one in agreements])
    else:
        table(
            f"{Path(checkpoint).name} on {task}: {default} and {other}, {model['dtype']}",
            ["probe", "kind", "texts", "same", "parted at a tie", "parted", "largest difference of log p"],
            [
                [
                    *(one.probe, str(one.kind), str(one.n), str(one.same), str(one.ties), str(one.parted)),
                    "–" if one.worst is None else f"{one.worst:.1e}",
                ]
                for one in agreements
            ],
        )
    if any(one.parted for one in agreements):
        raise typer.Exit(1)
