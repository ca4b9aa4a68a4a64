"""A line of the board: the seeds of one entry, put together.

Two errors are kept apart. The one over examples says how far a number would move with other questions; the one over
seeds, how far with another run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from leaderboard.headlines import Headlines
from leaderboard.schema import Status
from tasks.scoring.estimate import Estimate

FORGOT = 0.5
"""Forgetting below which robustness says little: what was not forgotten cannot come back."""
NOTED = (Status.FAILED, Status.UNCHANGED)
"""Statuses that are told beside an entry and do not cost it its rank."""
Z95 = 1.96
"""Standard errors on each side of a 95 % interval."""
FEWEST_SEEDS = 3
"""Seeds for an interval: with two, Student's t makes it 25 standard errors wide, which says nothing."""


@dataclass(frozen=True, slots=True)
class Number:
    """A mean over seeds.

    Attributes:
        value: null, with the reason, where a seed has none.
        over_examples: standard error over examples: the mean of the seeds' errors. Every seed is asked the same
            examples, so more seeds do not make this error smaller.
        seed_values: the seeds' own values, in the order of `Entry.seeds` without the failed ones.
        seed_interval: 95 % interval over seeds (Student's t); null with fewer than three seeds.
    """

    value: float | None
    over_examples: float | None = None
    seed_values: tuple[float | None, ...] = ()
    seed_interval: tuple[float, float] | None = None
    reason: str | None = None

    @property
    def margin(self) -> float:
        """Half of the 95 % interval over examples; 0 where no error is known."""
        return Z95 * (self.over_examples or 0.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What unlearning asked for, as means over seeds; null where a seed does not say."""

    value_calls: float | None
    gradient_calls: float | None
    directional_calls: float | None
    curvature_calls: float | None
    tokens: float | None
    unlearn_seconds: float | None


@dataclass(frozen=True, slots=True)
class Seed:
    """One trial of an entry."""

    trial: str
    seed: int | None
    status: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the board: one trial without its seed.

    Attributes:
        entry: id of the entry.
        recovery: excess recovery per attack, as a share of the distance between the anchors.
        worst_attack: the attack with the largest recovery; null where one is not known.
        statuses: number of seeds per status.
        reason: why there is no rank; null where there is one.
        rank: place on the board, shared by entries that the examples cannot tell apart.
        below_floor: utility is below the board's floor, so the entry stands after all that keep it.
        did_not_forget: F is below 0.5, so R says little.
        pareto: no other ranked entry is at least as good in F, R and U and better in one of them.
    """

    entry: str
    label: str
    optimizer: str | None
    objective: str | None
    smoothing: str | None
    grade: str | None
    forgetting: Number
    robustness: Number
    utility: Number
    score: Number
    recovery: Mapping[str, Number]
    worst_attack: str | None
    cost: Cost
    seeds: tuple[Seed, ...]
    statuses: Mapping[str, int]
    notes: tuple[str, ...]
    reason: str | None
    did_not_forget: bool
    rank: int | None = None
    below_floor: bool = False
    pareto: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """A row of the table `trials` with its headlines."""

    row: Mapping[str, Any]
    headlines: Headlines


def combined(label: str, trials: Sequence[Trial]) -> Entry:
    """The seeds of one entry as one line, not yet ranked.

    A failed trial is an accident of the machine and is not counted. A diverged one is a result: an entry with a
    diverged seed gets no rank, because a mean over the others would keep silent about it.
    """
    trials = sorted(trials, key=lambda trial: (trial.row["seed"] or 0, trial.row["trial"]))
    counted = [trial for trial in trials if trial.row["status"] != Status.FAILED]
    row = trials[0].row

    def number(of: Callable[[Headlines], Estimate]) -> Number:
        return _mean({_name(trial): of(trial.headlines) for trial in counted})

    recovery = {
        attack: number(lambda headlines, attack=attack: headlines.recovery[attack])
        for attack in trials[0].headlines.recovery
    }
    known = {attack: number.value for attack, number in recovery.items() if number.value is not None}
    forgetting, score = number(lambda headlines: headlines.forgetting), number(lambda headlines: headlines.score)
    return Entry(
        entry=row["entry"],
        label=label,
        optimizer=row["optimizer"],
        objective=row["objective"],
        smoothing=row["smoothing"],
        grade=row["grade"],
        forgetting=forgetting,
        robustness=number(lambda headlines: headlines.robustness),
        utility=number(lambda headlines: headlines.utility),
        score=score,
        recovery=recovery,
        worst_attack=max(known, key=known.__getitem__) if len(known) == len(recovery) else None,
        cost=Cost(**{name: _plain_mean([trial.row[name] for trial in counted]) for name in Cost.__slots__}),
        seeds=tuple(Seed(*(trial.row[name] for name in Seed.__slots__)) for trial in trials),
        statuses=dict(sorted(Counter(trial.row["status"] for trial in trials).items())),
        notes=tuple(_said(trial, len(trials)) for trial in trials if trial.row["status"] in NOTED),
        reason=_reason(trials, score),
        did_not_forget=forgetting.value is not None and forgetting.value < FORGOT,
    )


def _mean(estimates: Mapping[str, Estimate]) -> Number:
    if not estimates:
        return Number(None, reason="no seed finished")
    values = [estimate.value for estimate in estimates.values()]
    for seed, estimate in estimates.items():
        if estimate.value is None:
            reason = estimate.reason if len(estimates) == 1 else f"{seed}: {estimate.reason}"
            return Number(None, seed_values=tuple(values), reason=reason)
    errors = [estimate.stderr for estimate in estimates.values() if estimate.stderr is not None]
    return Number(
        _plain_mean(values),
        _plain_mean(errors),
        tuple(values),
        _interval(values) if len(values) >= FEWEST_SEEDS else None,
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean, from Student's t with n - 1 degrees of freedom."""
    n, centre = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return centre - half, centre + half


def _plain_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _reason(trials: Sequence[Trial], score: Number) -> str | None:
    for status in (Status.DIVERGED, Status.FAILED):
        said = [trial for trial in trials if trial.row["status"] == status]
        if said and (status is Status.DIVERGED or len(said) == len(trials)):
            return _said(said[0], len(trials))
    return score.reason


def _said(trial: Trial, of: int) -> str:
    """What happened to a trial: `seed 2 diverged: the loss is not finite`."""
    who = "" if of == 1 else f"{_name(trial)} "
    return f"{who}{trial.row['status']}: {trial.row['reason'] or 'no reason was given'}"


def _name(trial: Trial) -> str:
    return f"seed {trial.row['seed']}"
