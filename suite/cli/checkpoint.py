"""What `eval` and `attack` share: options, and the measurement of a checkpoint from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suite.cli.common import text

if TYPE_CHECKING:
    from suite.trials.given_checkpoint import CheckpointResult

CheckpointName = Annotated[
    str, typer.Argument(help="Folder, or hub id owner/model\\[@revision].", show_default=False, callback=text)
]
TaskName = Annotated[str, typer.Option("--task", help="The task to evaluate on.", show_default=False)]
Anchor = Annotated[str | None, typer.Option(help="Checkpoint to compare with, where a metric does.", callback=text)]
Limit = Annotated[int | None, typer.Option(help="Questions per probe and split, the first ones.", min=1)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
TemplateName = Annotated[str | None, typer.Option(help="bare, plain or chat; the tokenizer's own by default.")]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        metavar="KEY=VALUE",
        help="What the chat template is given: system=..., date_string=..., enable_thinking=true. Several times.",
        callback=text,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TensorParallel = Annotated[int, typer.Option(help="GPUs of one engine, for models that one does not hold.", min=1)]
Threads = Annotated[int, typer.Option(help="CPU threads.", min=1)]


def model_settings(dtype: str, template: str | None, template_args: Sequence[str] | None) -> dict[str, Any]:
    """The options about the model as settings of `model`."""
    from suite.config.errors import SpecError
    from suite.spec.yaml_file import split_override

    given: dict[str, Any] = {}
    for word in template_args or ():
        key, value = split_override(word)
        if key in given or "." in key:
            raise SpecError(f"--template-arg {key}: {'given twice' if key in given else 'is one name, without a dot'}")
        given[key] = value
    return {"dtype": dtype, "template": template, **({"template_args": given} if given else {})}


def engine_settings(engine: str | None, tensor_parallel: int) -> dict[str, Any]:
    """The engine options of the command line as settings of `measure`.

    Raises:
        SpecError: the engine takes no `tensor_parallel`.
    """
    from suite.config.errors import SpecError

    settings: dict[str, Any] = {"engine": engine} if engine else {}
    if tensor_parallel == 1:
        return settings
    from suite.engines import ENGINES

    parallel = [name for name, kind in ENGINES.items() if "tensor_parallel" in kind.Settings.model_fields]
    if engine and engine not in list(ENGINES):
        return settings  # which are refused where they are read
    if engine not in parallel:
        raise SpecError(f"--tensor-parallel: is a setting of {', '.join(parallel)}. Add --engine {parallel[0]}")
    return settings | {engine: {"tensor_parallel": tensor_parallel}}


def check_task(task: str) -> None:
    """Raise SpecError where there is no such task."""
    from suite.config.errors import SpecError
    from tasks import TASKS
    from tasks.plain_text import cut

    if task not in TASKS:
        known = ", ".join(TASKS.titles)
        raise SpecError(f"--task {cut(task)}: unknown.{TASKS.nearest(task)} (allowed: {known}; see regrade ls tasks)")


def _check_name(key: str, name: str | None) -> None:
    from suite.config.errors import SpecError
    from suite.models.settings import nameable

    try:
        nameable(name or "tiny")
    except ValueError as error:
        raise SpecError(f"{key}: {error}") from None


def measure_from_options(
    checkpoint: str,
    task: str,
    anchors: dict[str, str | None],
    splits: Sequence[str],
    measure: dict[str, Any],
    model: dict[str, Any],
    runtime: dict[str, Any],
    store: str,
) -> CheckpointResult:
    """Measure a checkpoint with the settings of the command line.

    Raises:
        SpecError, TaskError: a setting, a model or the task's data is wrong.
    """
    from suite.config.runtime import RuntimeSpec
    from suite.config.settings import parse
    from suite.models.settings import ModelSpec
    from suite.spec.measure import MeasureSpec
    from suite.storage.store import Store
    from suite.trials.given_checkpoint import measure_checkpoint

    check_task(task)
    for key, name in {"checkpoint": checkpoint, **{f"--{subject}": path for subject, path in anchors.items()}}.items():
        _check_name(key, name)
    return measure_checkpoint(
        checkpoint,
        task,
        parse(ModelSpec, {"name": checkpoint, **model}, "--"),
        Store(store).stages,
        anchors={name: path for name, path in anchors.items() if path},
        measure=parse(MeasureSpec, {"splits": list(splits), **measure}, "--"),
        runtime=parse(RuntimeSpec, runtime, "--"),
    )
