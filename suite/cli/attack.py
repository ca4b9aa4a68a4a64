"""`regrade attack`: attacks on a checkpoint, without a trial, and how much knowledge each recovers."""

from __future__ import annotations

import re
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
from suite.cli.common import STORE, EngineName, Json, StoreDir, console, number, print_json, table
from suite.cli.outputs import say

Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        help="An attack by its name in rows, rtn\\[bits=4]; give it several times. By default the official set.",
    ),
]

_ATTACK = re.compile(r"(\w+)(?:\[(.*)\])?", re.DOTALL)
_BETWEEN = re.compile(r",(?=\s*\w+=)")
"""A comma between two settings: one inside a list is not followed by a setting."""


def attack(
    checkpoint: CheckpointName,
    task: TaskName,
    attacks: Attacks = None,
    attack_set: Annotated[str, typer.Option("--attacks", help="An attack set of the task.")] = "official",
    retrained: Anchor = None,
    target: Anchor = None,
    split: Annotated[str, typer.Option(help="dev or test: attacks differ, so that a search may look at dev.")] = "test",
    limit: Limit = None,
    dtype: Dtype = "float32",
    template: TemplateName = None,
    template_arg: TemplateArgs = None,
    device: Device = "auto",
    threads: Threads = 1,
    engine: EngineName = None,
    tensor_parallel: TensorParallel = 1,
    store: StoreDir = STORE,
    as_json: Json = False,
) -> None:
    """Attack a checkpoint, and its anchors where they are named, and print the recovery under each attack."""
    from suite.config.errors import SpecError
    from suite.storage.location import store_folder
    from tasks.plain_text import cut
    from tasks.task import Split

    store_folder(store)
    if split not in list(Split):
        raise SpecError(f"--split {cut(split)}: unknown (allowed: {', '.join(Split)})")
    check_task(task)
    chosen: Any = [settings_of(text) for text in attacks] if attacks else attack_set
    result = measure_from_options(
        checkpoint,
        task,
        {"target": target, "retrained": retrained},
        [split],
        {"attacks": chosen, "limit": limit, **engine_settings(engine, tensor_parallel)},
        model_settings(dtype, template, template_arg),
        {"device": device, "threads": threads},
        store,
    )
    shown = [row for row in result.rows if row["headline"]]
    recovery = result.headlines[split].recovery
    if as_json:
        excess = {name: {"value": e.value, "stderr": e.stderr, "reason": e.reason} for name, e in recovery.items()}
        print_json({"measurements": shown, "excess_recovery": excess})
        return
    table(
        f"{Path(checkpoint).name} on {task}, {split}",
        ["attack", "point", "probe", "metric", "value", "± error"],
        [
            [
                *(row["attack"], str(row["point"]), row["probe"], row["metric"]),
                *(number(row["value"], 4), number(row["stderr"], 4)),
            ]
            for row in sorted(shown, key=lambda row: (list(recovery).index(row["attack"]), row["point"]))
        ],
    )
    if target:
        table(
            "\nexcess recovery: 0 is what a model that never knew reaches under the same attack, 1 the target",
            ["attack", "recovery", "± error"],
            [[name, number(e.value, 3), number(e.stderr, 3)] for name, e in recovery.items()],
        )
    else:
        console().print("Name --target and --retrained to see what comes back beyond what the attack teaches.")
    for reason in dict.fromkeys(e.reason for e in recovery.values() if e.reason and target):
        say(reason)


def settings_of(text: str) -> dict[str, Any]:
    """An attack's settings from its name in rows: `relearn[lr=0.001,samples=12,steps=24]`.

    Raises:
        SpecError: it is not of this form.
    """
    from suite.config.errors import SpecError
    from suite.spec.yaml_file import parse_value
    from tasks.plain_text import cut

    parts = _ATTACK.fullmatch(text.strip())
    pairs = [pair.partition("=") for pair in _BETWEEN.split(parts[2])] if parts and parts[2] else []
    if not parts or not all(key.strip() and equals for key, equals, _ in pairs):
        raise SpecError(
            f"--attack {cut(text)}: not understood. Write name[key=value,...], e.g. rtn[bits=4,per=channel]"
        )
    settings: dict[str, Any] = {"name": parts[1]}
    for key, _, value in pairs:
        if key.strip() in settings:
            raise SpecError(f"--attack {cut(text)}: {key.strip()} is there twice. Keep one of them")
        settings[key.strip()] = parse_value(value, f"--attack {parts[1]}: {key.strip()}")
    return settings
