"""The null trials that follow from trials that are done: random changes of the weights, as large as theirs."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from leaderboard.board.schema import RANDOM_CHANGE, Status
from leaderboard.ranking.headlines import LARGEST
from suite.config.settings import parse
from suite.runners.base import TrialJob
from suite.spec.random_change import RandomChange
from suite.spec.trial import TrialSpec
from suite.storage.store import Store

MOST_SEEDS = 3
"""Null trials per pair of anchors: as many runs as a rank takes."""
TRIALS_EACH = 5
"""Trials of a sweep per null trial, unless the spec says otherwise: nulls then cost at most a fifth of the sweep."""
STEPS_PER_DOUBLING = 4
"""Norms that a factor of two is divided into. A median moves with every trial; its null trial should not."""


def null_jobs(jobs: Sequence[TrialJob], done: int) -> list[TrialJob]:
    """The null trials beside some jobs of one sweep, measured as they are: the same jobs give the same null trials.

    Args:
        jobs: trials that were run. Only what these changed counts, whatever else is in the store.
        done: trials that the sweep has run: those of a search too, of which `jobs` are the best.

    Raises:
        BoardError: the board cannot be read.
    """
    if not jobs or jobs[0].measure.nulls is False:
        return []
    names = ["trial", "status", "change_norm"]
    rows = Store(jobs[0].store).board.read("trials", {"trial": [job.spec.id for job in jobs]}, names).to_pylist()
    norms = {
        row["trial"]: row["change_norm"]
        for row in rows
        if row["status"] in (Status.OK, Status.STOPPED) and 0 < (row["change_norm"] or 0.0) <= LARGEST
    }
    trials = [job.spec for job in jobs if isinstance(job.spec, TrialSpec)]
    found = random_changes(trials, norms, bool(jobs[0].measure.nulls), done)
    return [replace(jobs[0], spec=spec, search=None) for spec in found]


def random_changes(
    trials: Iterable[TrialSpec], norms: Mapping[str, float], wanted: bool, done: int
) -> list[RandomChange]:
    """The null trials beside some trials: per pair of anchors one for each of their first seeds.

    Trials that could change other parameters have null trials of their own.

    Args:
        norms: by trial the norm of its weights' change, of those that were measured.
        wanted: all of them; else as many as cost a fifth of the trials.
        done: trials that were run.
    """
    groups: defaultdict[str, list[TrialSpec]] = defaultdict(list)
    for spec in trials:
        if spec.id in norms:
            groups[json.dumps(_shared(spec), sort_keys=True)].append(spec)
    if not groups:
        return []
    most = MOST_SEEDS if wanted else min(MOST_SEEDS, done // TRIALS_EACH // len(groups))
    return [
        parse(RandomChange, {**_shared(same[0]), RANDOM_CHANGE: norm, "seed": seed})
        for same in groups.values()
        for norm in [rounded_norm(median(norms[spec.id] for spec in same))]
        for seed in sorted({spec.seed for spec in same})[:most]
    ]


def rounded_norm(norm: float) -> float:
    """A norm rounded to a power of 2^(1/4), with three digits: at most 9 % from what it was."""
    power = round(STEPS_PER_DOUBLING * math.log2(norm)) / STEPS_PER_DOUBLING
    return float(f"{2.0**power:.3g}")


def _shared(spec: TrialSpec) -> dict[str, Any]:
    """What a trial has in common with its null trial."""
    names = ("task", "model", "anchors", "trainable")
    return {name: spec.canonical[name] for name in names if name in spec.canonical}
