"""Retention matching (UWC, Wang et al. 2024, arXiv 2406.09179): weights interpolated back toward the target until
utility reaches a floor, so that a damaged model cannot win by having forgotten everything.

The share of the unlearned weights is the largest that keeps utility at the floor, found by bisection to 0.01 on dev;
the matched weights are then attacked and evaluated like any other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.config.canonical import digest
from suite.engines import Engine
from suite.evaluation.evaluator import estimates
from suite.models.checkpoints import Checkpoint, KeyedCheckpoint, interpolated
from suite.models.outline import outline_of
from suite.storage.environment import Numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchors
from tasks.scoring import Estimate
from tasks.scoring.headline import share_kept, smallest
from tasks.task import Headline, Split, Task

VERSION = 1
"""Increased when the same weights give another match."""

STEPS = 100
"""Resolution of the share: multiples of 1 / STEPS are tried."""


@dataclass(frozen=True)
class RetentionMatch:
    """The result of retention matching: how far to interpolate from the target to the unlearned checkpoint.

    Attributes:
        share: the share of the unlearned weights; 1 if these keep utility by themselves, None if utility is unknown.
        utility: utility of the matched weights on dev.
        reason: why utility is unknown.
    """

    share: float | None
    utility: float | None
    reason: str | None


def retention_match(
    unlearned: KeyedCheckpoint,
    anchors: Anchors,
    task: Task,
    floor: float,
    engine: Engine,
    store: StageStore,
    numeric: Numeric,
) -> RetentionMatch:
    """Find the largest share of the unlearned weights that keeps utility at `floor`, as a stage."""
    inputs = {
        "version": VERSION,
        "unlearned": [unlearned.key, unlearned.part],
        "target": anchors.target.key,
        "floor": floor,
        "probes": {probe.name: probe.digest for probe in task.probes_behind(task.utility, Split.DEV)},
        "headlines": [[h.probe, h.metric, h.chance] for h in task.utility],
        "engine": engine.identity() | outline_of(anchors.target.checkpoint.architecture).generation,
        "template": str(anchors.base.encoder.template),
        "numeric": numeric.as_dict(),
    }

    def headline_estimates(checkpoint: Checkpoint) -> dict[Headline, Estimate]:
        return estimates(checkpoint, task.utility, task, Split.DEV, engine)

    def compute(folder: Path) -> dict[str, Any]:
        target = anchors.target.checkpoint
        of_target = headline_estimates(target)

        def utility(share: float) -> Estimate:
            of_interpolated = headline_estimates(interpolated(target, unlearned.checkpoint, share))
            return smallest(share_kept(of_interpolated[h], of_target[h], h.chance) for h in task.utility)

        match = largest_share(utility, floor)
        return {"share": match.share, "utility": match.utility, "reason": match.reason}

    return RetentionMatch(**store.run("mixture", inputs, compute).meta)


def largest_share(utility: Callable[[float], Estimate], floor: float) -> RetentionMatch:
    """The largest multiple of 0.01 whose utility is at least `floor`, by bisection between 0 (the target) and 1.

    Bisection assumes that utility falls as the share rises. Where it does not, the result is one of the shares at which
    utility crosses the floor.
    """
    estimate = utility(1.0)
    if estimate.value is None:
        return RetentionMatch(None, None, estimate.reason)
    if estimate.value >= floor:
        return RetentionMatch(1.0, estimate.value, None)
    above, below, matched_utility = 0, STEPS, 1.0  # at share 0, the target keeps all of its own utility
    while below - above > 1:
        middle = (above + below) // 2
        estimate = utility(middle / STEPS)
        if estimate.value is not None and estimate.value >= floor:
            above, matched_utility = middle, estimate.value
        else:
            below = middle
    return RetentionMatch(above / STEPS, matched_utility, None)


def matched_weights(share: float, unlearned: KeyedCheckpoint, anchors: Anchors) -> KeyedCheckpoint:
    """The weights that contain this share of the unlearned weights, and otherwise the target's.

    At a share of 0 or 1 they are the target or the unlearned model itself, whose samples exist anyway.
    """
    target = anchors.target
    if share in (0.0, 1.0):
        return unlearned if share else target
    key = digest({"unlearned": [unlearned.key, unlearned.part], "target": target.key, "share": share})
    return KeyedCheckpoint(interpolated(target.checkpoint, unlearned.checkpoint, share), key)
