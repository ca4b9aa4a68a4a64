"""An entry of the board: the trials that differ only in their seed, combined.

Every number has one interval: how far it would move with other questions and, with two runs or more, with other runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from leaderboard.board.schema import Status
from leaderboard.ranking.comparison import Replicated, Replicates, spread
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.headlines import Headlines
from leaderboard.ranking.mixing_curve import Crossing
from leaderboard.ranking.number import Number, over_seeds, plain_mean
from leaderboard.ranking.trial import MatchedHeadlines, Trial
from tasks.scoring.estimate import Estimate

FORGOT = 0.5
"""Below this forgetting, robustness says little: what was not forgotten cannot be recovered."""
NOTED = (Status.FAILED, Status.UNCHANGED)
"""Statuses that are noted beside an entry and do not cost it its rank."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of unlearning, as means over seeds; null where a seed lacks the number."""

    value_calls: float | None
    gradient_calls: float | None
    directional_calls: float | None
    curvature_calls: float | None
    tokens: float | None
    unlearn_seconds: float | None


@dataclass(frozen=True, slots=True)
class Seed:
    """One trial of an entry.

    Attributes:
        engine: the engine whose numbers are used; null where no engine measured the trial.
    """

    trial: str
    seed: int | None
    status: str
    reason: str | None
    engine: str | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of an entry's weights, either unchanged or mixed with the target's.

    Attributes:
        robustness_harmonic: harmonic mean over the attacks; R is about the worst one.
        recovery: excess recovery per attack, as a share of the distance between the anchors.
        curves: the same at each point of the attacks that have several; point 0 is before the attack.
        areas: area under these curves, divided by their length.
        worst_attack: the attack with the largest recovery; null where a recovery is not known.
        failed: attacks that ended in an error, with its message.
        reason: why there is no score; null where there is one.
        per_item: what is brought back of each question by whichever attack brings back most of it, less what the
            retrained model answers where it too is given the best attack for each; null where items are not known.
        worst_share: by attack, how often it is the worst, over replicates and runs; empty where items are not known.
        replicated: F, R, U and score by their field's name, for comparisons; null where items are not known.
    """

    forgetting: Number
    robustness: Number
    robustness_harmonic: Number
    utility: Number
    score: Number
    recovery: Mapping[str, Number]
    curves: Mapping[str, Mapping[int, Number]]
    areas: Mapping[str, Number]
    worst_attack: str | None
    failed: Mapping[str, str]
    reason: str | None
    per_item: Number
    worst_share: Mapping[str, float]
    replicated: Mapping[str, Replicated] | None = field(compare=False)

    @property
    def point(self) -> tuple[float, float, float] | None:
        """F, R and U; None where one is not known."""
        f, r, u = self.forgetting.value, self.robustness.value, self.utility.value
        return None if f is None or r is None or u is None else (f, r, u)


@dataclass(frozen=True, slots=True)
class Matched(Numbers):
    """An entry's numbers after mixing its weights back toward the target until utility reached a floor.

    Attributes:
        floor: the utility, a share of the target's.
        mixing_weight: share of the unlearned weights; 1 where they were not mixed.
        barrier: how far utility falls below the straight line between the target and the unlearned model on the way
            from one to the other; null with a reason where no curve was measured.
        kinds: how the runs were matched (`leaderboard.ranking.retention_matching`): `curve`, read where utility is at
            the floor on these questions; or `share`, one share that kept utility at the floor on dev, so that U is
            about the floor.
    """

    floor: float
    mixing_weight: Number
    barrier: Number
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry(Numbers):
    """A line of the board: the trials that differ only in their seed.

    Attributes:
        entry: id of the entry.
        matched: the same numbers at equal utility; null where they were not measured.
        statuses: number of seeds per status.
        rank: 1 + the number of entries that are significantly better, and never smaller than a higher score's.
        provisional: why there is a score and no rank; null where there is a rank, or no score.
        below_floor: utility is below the board's floor, so the entry comes after all that keep it.
        did_not_forget: F is below 0.5, so R says little.
        pareto: no other ranked entry is at least as good in F, R and U and better in one of them.
    """

    entry: str
    label: str
    optimizer: str | None
    objective: str | None
    smoothing: str | None
    grade: str | None
    matched: Matched | None
    cost: Cost
    seeds: tuple[Seed, ...]
    statuses: Mapping[str, int]
    notes: tuple[str, ...]
    did_not_forget: bool
    rank: int | None = None
    provisional: str | None = None
    below_floor: bool = False
    pareto: bool = False

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that its numbers come from: one, unless seeds were measured by different ones."""
        return tuple(sorted({seed.engine for seed in self.seeds if seed.engine and seed.status != Status.FAILED}))


def combined(label: str, trials: Sequence[Trial], floor: float | None = None) -> Entry:
    """Combines the trials of one entry, not yet ranked.

    A failed trial is an accident of the machine and is not counted. A diverged one is a result: an entry with a
    diverged seed gets no rank, because a mean over the others would hide it.

    Args:
        floor: utility floor of retention matching; None where there are no matched weights.
    """
    trials = sorted(trials, key=lambda trial: (trial.row["seed"] or 0, trial.row["trial"]))
    counted = [trial for trial in trials if trial.row["status"] != Status.FAILED]
    row = trials[0].row
    end_reason = _end_reason(trials)
    runs = {_name(trial): Run(trial.headlines, trial.replicates, trial.pairing) for trial in counted}
    numbers = _numbers(row["entry"], runs, trials[0].headlines.recovery)
    return Entry(
        entry=row["entry"],
        label=label,
        optimizer=row["optimizer"],
        objective=row["objective"],
        smoothing=row["smoothing"],
        grade=row["grade"],
        **numbers,
        matched=_matched(counted, floor, trials[0].headlines.recovery, end_reason) if floor is not None else None,
        cost=Cost(**{name: plain_mean([trial.row[name] for trial in counted]) for name in Cost.__slots__}),
        seeds=tuple(map(_seed, trials)),
        statuses=dict(sorted(Counter(trial.row["status"] for trial in trials).items())),
        notes=(
            *(_outcome(trial, len(trials)) for trial in trials if trial.row["status"] in NOTED),
            *_measured_apart(counted),
            *(_left_out(trial, len(trials)) for trial in trials if trial.left_out),
            *dict.fromkeys(trial.not_compared for trial in counted if trial.not_compared),
        ),
        reason=end_reason or numbers["score"].reason,
        did_not_forget=little_forgotten(numbers["forgetting"]),
    )


def _seed(trial: Trial) -> Seed:
    row = trial.row
    return Seed(row["trial"], row["seed"], row["status"], row["reason"], trial.engine)


def little_forgotten(forgetting: Number) -> bool:
    """Whether F is too low for R to say much."""
    return forgetting.value is not None and forgetting.value < FORGOT


def _matched(trials: Sequence[Trial], floor: float, attacks: Collection[str], end_reason: str | None) -> Matched | None:
    if not any(trial.matched for trial in trials):
        return None
    missing = Estimate.null(f"not measured with utility matched to {floor:g}")
    nothing = MatchedHeadlines(Headlines.null(missing, attacks), missing)
    matched = {_name(trial): trial.matched or nothing for trial in trials}
    pairing = {_name(trial): trial.pairing for trial in trials}
    runs = {seed: Run(one.headlines, one.replicates, pairing[seed]) for seed, one in matched.items()}
    key = f"{trials[0].row['entry']} matched"
    numbers = _numbers(key, runs, attacks)
    readings = {pairing[seed]: one.reading for seed, one in matched.items() if one.reading}
    compared = all(one.reading for one in matched.values())

    def along(of: Callable[[MatchedHeadlines], Estimate], drawn: Callable[[Crossing], Array]) -> Number:
        plain = over_seeds({seed: of(one) for seed, one in matched.items()})
        if plain.value is None or not compared:
            return plain
        found = Replicated.mean_of({seed: drawn(reading) for seed, reading in readings.items()})
        return _with_interval(found, key, plain.value, share=True)

    return Matched(
        floor=floor,
        mixing_weight=along(lambda one: one.weight, lambda reading: reading.weight),
        barrier=along(lambda one: one.barrier, lambda reading: reading.barrier),
        kinds=tuple(sorted({one.kind for one in matched.values() if one is not nothing})),
        **numbers,
        reason=end_reason or numbers["score"].reason,
    )


class Run(NamedTuple):
    """The numbers of one trial of an entry.

    Attributes:
        pairing: what runs of other entries are paired by: the seed.
    """

    headlines: Headlines
    replicates: Replicates | None
    pairing: str


def _numbers(key: str, runs: Mapping[str, Run], attacks: Collection[str]) -> dict[str, Any]:
    """The fields of `Numbers`.

    Args:
        key: names the entry; its draws over runs follow from it.
        runs: by the run's name.
    """
    compared = bool(runs) and all(run.replicates for run in runs.values())
    drawn = {run.pairing: run.replicates for run in runs.values() if run.replicates}

    def replicated(of: Callable[[Replicates], Array]) -> Replicated:
        return Replicated.of(drawn, of)

    def number(
        estimate: Callable[[Headlines], Estimate], of: Callable[[Replicates], Array], *, share: bool = False
    ) -> Number:
        plain = over_seeds({seed: estimate(run.headlines) for seed, run in runs.items()})
        if plain.value is None or not compared:
            return plain
        return _with_interval(replicated(of), key, plain.value, share=share)

    def on_curve(
        attack: str, estimate: Callable[[Headlines], Estimate | None], of: Callable[[Replicates], Array]
    ) -> Number:
        lacking = f"{attack} was not measured at every point"
        return number(lambda found: estimate(found) or Estimate.null(found.recovery[attack].reason or lacking), of)

    def recovered(attack: str) -> Number:
        return number(lambda found: found.recovery[attack], lambda found: found.recovery[attack])

    def height(attack: str, point: int) -> Number:
        return on_curve(
            attack,
            lambda found: found.curves.get(attack, {}).get(point),
            lambda found: found.curves[attack][point],
        )

    def area(attack: str) -> Number:
        return on_curve(attack, lambda found: found.areas.get(attack), lambda found: found.areas[attack])

    def per_item() -> Number:
        unknown = Number(None, reason="the answers to single questions are not known")
        try:
            return _with_interval(replicated(_of_items), key, None, share=False) if compared else unknown
        except _ItemsUnknown:
            return unknown

    recovery = {attack: recovered(attack) for attack in attacks}
    known = {attack: found.value for attack, found in recovery.items() if found.value is not None}
    points = {
        attack: sorted({point for run in runs.values() for point in run.headlines.curves.get(attack, ())})
        for attack in attacks
    }
    curved = [attack for attack in attacks if points[attack]]
    failed: dict[str, str] = {}
    for seed, run in runs.items():
        for attack, why in run.headlines.failed.items():
            failed.setdefault(attack, why if len(runs) == 1 else f"{why} ({seed})")
    headlines = {name: number(attrgetter(name), attrgetter(name), share=True) for name in HEADLINES}
    return {
        **headlines,
        "recovery": recovery,
        "curves": {attack: {point: height(attack, point) for point in points[attack]} for attack in curved},
        "areas": {attack: area(attack) for attack in curved},
        "worst_attack": max(known, key=known.__getitem__) if len(known) == len(recovery) else None,
        "failed": failed,
        "per_item": per_item(),
        "worst_share": _worst_share(list(drawn.values())) if compared else {},
        "replicated": {name: replicated(attrgetter(name)) for name in HEADLINES}
        if compared and headlines["score"].value is not None
        else None,
    }


class _ItemsUnknown(Exception):
    """What is brought back of each item is not known of a run."""


def _of_items(run: Replicates) -> Array:
    if run.per_item is None:
        raise _ItemsUnknown
    return run.per_item


def _with_interval(found: Replicated, key: str, plain: float | None, *, share: bool) -> Number:
    """A number of an entry with its interval, which for a share ends at 0 and 1."""
    told = spread(found, key, (0.0, 1.0) if share else None)
    return Number(told.estimate, (told.low, told.high), plain, tuple(found.runs.values()))


HEADLINES = ("forgetting", "robustness", "robustness_harmonic", "utility", "score")


def _worst_share(runs: Sequence[Replicates]) -> dict[str, float]:
    """How often each attack is the worst, over all runs."""
    return {attack: sum(run.worst.get(attack, 0.0) for run in runs) / len(runs) for attack in runs[0].worst}


def _end_reason(trials: Sequence[Trial]) -> str | None:
    """Why there is no rank, if that is because of how trials ended."""
    for status in (Status.DIVERGED, Status.FAILED):
        with_status = [trial for trial in trials if trial.row["status"] == status]
        if with_status and (status is Status.DIVERGED or len(with_status) == len(trials)):
            return _outcome(with_status[0], len(trials))
    return None


def _outcome(trial: Trial, trials: int) -> str:
    """What happened to a trial: `seed 2 diverged: the loss is not finite`."""
    who = "" if trials == 1 else f"{_name(trial)} "
    return f"{who}{trial.row['status']}: {trial.row['reason'] or 'no reason was given'}"


def _left_out(trial: Trial, trials: int) -> str:
    who = "" if trials == 1 else f"{_name(trial)}: "
    return (
        f"{who}{trial.left_out} measurements left out: they were made with other weights in the anchors' folders. Name "
        "each version's folder apart to rank both"
    )


def _measured_apart(trials: Sequence[Trial]) -> list[str]:
    """A note on which engine measured which seed, if there are several: then seeds differ by their engines too."""
    seeds: dict[str, list[str]] = {}
    for trial in trials:
        if trial.engine:
            seeds.setdefault(trial.engine, []).append(str(trial.row["seed"]))
    if len(seeds) < 2:
        return []
    parts = (f"{', '.join(seeds[engine])} by {engine}" for engine in sorted(seeds))
    return [f"seeds were measured by different engines: {'; '.join(parts)}"]


def _name(trial: Trial) -> str:
    return f"seed {trial.row['seed']}"
