"""Speed of the core, as ratios within one run: a zeroth-order step over its forward passes, the batched engine over
one text at a time, and a repeated trial over its first run.

    python benchmarks/spine.py [--json FILE] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from timing import ratio, seconds

from suite.config.runtime import RuntimeSpec
from suite.engines import Job, TransformersEngine
from suite.models.encoding import Tokens
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS, Run
from suite.oracle.base import Part
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from suite.trials.run import run_trial
from tasks import TASKS
from tasks.task import Split

SPEC = {
    "task": "pocket",
    "anchors": {"epochs": 1, "lr": 3e-3},
    "objective": "graddiff",
    "optimizer": {"name": "adam", "lr": 1e-4},
    "steps": 4,
}


def zeroth_order(store: Store, repeats: int) -> dict[str, float]:
    """Time of a step with q central differences over 2q forward passes of the same loss (1.0 is the lower bound)."""
    task = TASKS["pocket"].build()
    anchors = prepare_anchors(trial(SPEC), task, store.stages, RuntimeSpec())
    encode = anchors.base.encoder.example
    batch = Batch(
        Tokens.collate([encode(e) for e in task.forget_examples()[:16]]),
        Tokens.collate([encode(e) for e in task.retain[:16]]),
    )
    oracle = LossOracle(anchors.checkpoint("target").model(), OBJECTIVES["graddiff"](OBJECTIVES["graddiff"].Settings()))
    oracle.batch = batch
    kind = OPTIMIZERS["r_adazo"]
    ratios = {}
    for q in (1, 4):
        settings = kind.Settings(lr=1e-9, zo={"samples": q})
        optimizer = kind(settings, oracle.parameters, Run(steps=10**6))
        ratios[f"zo_step_q{q}_over_forwards"] = ratio(
            lambda optimizer=optimizer: optimizer.step(oracle),
            lambda q=q: oracle.values(Part.TOTAL, [None] * (2 * q)),
            repeats,
        )
    return ratios


def engine(store: Store, repeats: int) -> dict[str, float]:
    """Speedup of all test probes of pocket in batches, over one batch per text."""
    task = TASKS["pocket"].build()
    anchors = prepare_anchors(trial(SPEC), task, store.stages, RuntimeSpec())
    job = Job("x", anchors.checkpoint("target"), task.probes_of(Split.TEST))
    cpu = torch.device("cpu")
    many, single = (
        TransformersEngine(anchors.base.encoder, dtype="float32", device=cpu, batch_tokens=tokens)
        for tokens in (4096, 1)
    )
    speedup = ratio(lambda: list(single.submit([job])), lambda: list(many.submit([job])), max(1, repeats // 3))
    return {"engine_batched_speedup": speedup}


def again(root: Path) -> dict[str, float]:
    """Time of a trial whose stages are all in the store, over its first run."""
    measure = MeasureSpec()
    first = seconds(lambda: run_trial(trial(SPEC), Store(root / "again"), measure=measure))
    second = seconds(lambda: run_trial(trial(SPEC), Store(root / "again"), measure=measure))
    return {"trial_again_over_first": second / first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object of numbers")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        figures = zeroth_order(store, arguments.repeats) | engine(store, arguments.repeats) | again(Path(folder))
    for name, value in figures.items():
        print(f"{name:32s} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
