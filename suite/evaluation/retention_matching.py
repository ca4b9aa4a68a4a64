"""Retention matching (UWC, Wang et al. 2024, arXiv 2406.09179): weights mixed back toward the target until utility
reaches a floor, so that a wrecked model cannot win by having forgotten everything.

The share of the unlearned weights is the largest that keeps utility at the floor, found by bisection to 0.01 on dev;
the mixture is then attacked and asked like any other weights.
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
from suite.storage.environment import Numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchors
from tasks.scoring import Estimate
from tasks.scoring.headline import share_kept, smallest
from tasks.task import Headline, Split, Task

VERSION = 1
"""Raised when the same weights give another mixture."""

STEPS = 100
"""Shares that are told apart: multiples of 0.01."""


@dataclass(frozen=True)
class RetentionMatch:
    """An unlearned checkpoint mixed with the target.

    Attributes:
        share: of the unlearned weights; 1 where they keep utility by themselves, None where it cannot be told.
        reason: why it cannot be told.
        utility: of the mixture on dev.
    """

    share: float | None
    utility: float | None
    reason: str | None


def retention_match(
    unlearned: KeyedCheckpoint,
    both: Anchors,
    task: Task,
    floor: float,
    engine: Engine,
    store: StageStore,
    numeric: Numeric,
) -> RetentionMatch:
    """How much of the unlearned weights a mixture with the target can hold at a utility of `floor`."""
    inputs = {
        "version": VERSION,
        "unlearned": [unlearned.key, unlearned.part],
        "target": both.target.key,
        "floor": floor,
        "probes": {probe.name: probe.digest for probe in task.probes_behind(task.utility, Split.DEV)},
        "headlines": [[h.probe, h.metric, h.chance] for h in task.utility],
        "engine": engine.identity(),
        "template": str(both.base.encoder.template),
        "numeric": numeric.as_dict(),
    }

    def asked(checkpoint: Checkpoint) -> dict[Headline, Estimate]:
        return estimates(checkpoint, task.utility, task, Split.DEV, engine)

    def compute(folder: Path) -> dict[str, Any]:
        target = both.target.checkpoint
        whole = asked(target)

        def utility(share: float) -> Estimate:
            there = asked(interpolated(target, unlearned.checkpoint, share))
            return smallest(share_kept(there[h], whole[h], h.chance) for h in task.utility)

        found = largest_share(utility, floor)
        return {"share": found.share, "utility": found.utility, "reason": found.reason}

    return RetentionMatch(**store.run("mixture", inputs, compute).meta)


def largest_share(utility: Callable[[float], Estimate], floor: float) -> RetentionMatch:
    """The largest multiple of 0.01 whose utility is at least `floor`, by bisection between 0, the target, and 1.

    Utility that falls with the share is taken for granted: where it does not, this is one of the places where it
    crosses the floor.
    """
    now = utility(1.0)
    if now.value is None:
        return RetentionMatch(None, None, now.reason)
    if now.value >= floor:
        return RetentionMatch(1.0, now.value, None)
    kept, lost, at = 0, STEPS, 1.0  # the target keeps all of its utility
    while lost - kept > 1:
        middle = (kept + lost) // 2
        now = utility(middle / STEPS)
        if now.value is not None and now.value >= floor:
            kept, at = middle, now.value
        else:
            lost = middle
    return RetentionMatch(kept / STEPS, at, None)


def matched_weights(share: float, unlearned: KeyedCheckpoint, both: Anchors) -> KeyedCheckpoint:
    """The mixture with so much of the unlearned weights.

    At either end it is the one or the other model itself, which is asked anyway.
    """
    target = both.target
    if share in (0.0, 1.0):
        return unlearned if share else target
    key = digest({"unlearned": [unlearned.key, unlearned.part], "target": target.key, "share": share})
    return KeyedCheckpoint(interpolated(target.checkpoint, unlearned.checkpoint, share), key)
