"""What the official attack set costs beyond its training and its evaluation, on one checkpoint, within one run.

    python benchmarks/attacks.py [--model FOLDER] [--task TASK] [--limit N] [--repeats N] [--json FILE]

Training is the time inside fine-tuning steps and edits of weights; evaluation is the time in which the engine scores
and generates. All else (loading, tokenizing, copying weights, samples to disk) is overhead: whole / (both) is to be at
most 1.3. By default the tiny model on `pocket`, where overhead weighs the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import suite.attacks.finetuning.base
import suite.engines.transformers.engine
from suite.attacks import AttackContext
from suite.attacks.base import WeightEdit
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.evaluation.evaluator import Evaluator, evaluations_of
from suite.models.checkpoints import KeyedCheckpoint
from suite.models.loading import base_model
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.storage.environment import Numeric, numeric
from suite.storage.store import Store
from suite.trials.task_data import with_extras, within_limit
from tasks.task import Split


class Clock:
    """Seconds by kind of work. Work inside of other work counts once."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = False

    def timed(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on the clock."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return work(*args, **kwargs)
            self._inside, started = True, time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds[kind] += time.perf_counter() - started
                self._inside = False

        return call

    def steps(self, kind: str, work: Callable[..., Iterator[int]]) -> Callable[..., Iterator[int]]:
        """The same generator, on the clock while it works."""

        def call(*args: Any, **kwargs: Any) -> Iterator[int]:
            made = work(*args, **kwargs)
            step = self.timed(kind, lambda: next(made, None))
            while (number := step()) is not None:
                yield number

        return call


def watch(clock: Clock) -> None:
    """Put the two kinds of work on the clock."""
    engine = suite.engines.transformers.engine
    for name in ("scored", "continued", "gradient_norm"):
        setattr(engine, name, clock.timed("evaluation", getattr(engine, name)))
    trained = suite.attacks.finetuning.base
    trained.finetune = clock.steps("training", trained.finetune)
    for kind in _kinds(WeightEdit):
        if "edited" in vars(kind):
            kind.edited = clock.timed("edits", kind.edited)


def _kinds(kind: type) -> Iterator[type]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def once(args: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """One pass over the official set: seconds by kind, and in all."""
    clock.seconds.clear()
    measure, runtime = MeasureSpec(limit=args.limit), RuntimeSpec()
    whole_task = with_extras(args.task, measure)
    task = within_limit(whole_task, measure)
    attacks = measure.attacks_for(args.task, Split.TEST)
    with tempfile.TemporaryDirectory() as folder, numeric(runtime) as device:
        store = Store(folder)
        base = base_model(ModelSpec(name=args.model), task, 0, store.stages)
        engine = TransformersEngine(base.encoder, dtype="float32", device=device)
        weights = KeyedCheckpoint(base.checkpoint, "base")
        context = AttackContext(
            engine,
            base.encoder,
            whole_task,
            0,
            device,
            target=base.checkpoint,
            target_key="base",
            block=base.block(task),
        )
        evaluations = evaluations_of("unlearned", weights, task, Split.TEST, attacks)
        evaluator = Evaluator(engine, context, store.stages, Numeric.of(runtime))
        started = time.perf_counter()
        failed = [e for e in evaluator.run(evaluations) if not hasattr(e, "artifact")]
        whole = time.perf_counter() - started
    if failed:
        raise SystemExit(f"{failed[0].evaluation.attack.name}: {failed[0].reason}")
    return {**clock.seconds, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="pocket")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    watch(clock)
    runs = [once(args, clock) for _ in range(args.repeats)]
    kinds = ("training", "edits", "evaluation", "whole")
    found = {kind: statistics.median(run.get(kind, 0.0) for run in runs) for kind in kinds}
    ratios = [run["whole"] / sum(run.get(kind, 0.0) for kind in kinds[:3]) for run in runs]
    found["ratio"], found["worst"] = statistics.median(ratios), max(ratios)
    print(
        f"{args.task}, {args.model}: training {found['training']:.2f} s, edits {found['edits']:.2f} s, evaluation "
        f"{found['evaluation']:.2f} s, whole {found['whole']:.2f} s"
    )
    print(f"whole / (training + edits + evaluation): {found['ratio']:.2f} (at most {found['worst']:.2f})")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
