"""Models that stand for no method, on every board: what a table gives for doing nothing, and for an empty answer.

The target itself, the retrained model, the target plus a random change as large as a method's (the null trials, which
a sweep makes), and two models that do not exist (`leaderboard.ranking.synthetic`). The numbers of those that exist are
made as entries' are, with intervals where items are known. They are never ranked, and none may have a higher score than
the retrained model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from leaderboard.board import schema
from leaderboard.board.items import Key, Scored, samples_of, scored_items
from leaderboard.board.schema import ANCHORS, UNLEARNED, Status
from leaderboard.board.store import Board, BoardError
from leaderboard.board.visible import shortened
from leaderboard.ranking.entry import Numbers, combined
from leaderboard.ranking.headlines import NONE, HeadlineMeasurements, HeadlineMetric, trial_headlines
from leaderboard.ranking.labels import LONGEST_SETTING
from leaderboard.ranking.levels import MeanMeasurements
from leaderboard.ranking.measured import Row, Source
from leaderboard.ranking.number import Number, plain_mean, rounded
from leaderboard.ranking.replicated import Replicating
from leaderboard.ranking.replicated_trials import ReplicatingTrials
from leaderboard.ranking.selection import Selection
from leaderboard.ranking.specs import settings_of
from leaderboard.ranking.synthetic import SYNTHETIC, synthetic_key, synthetic_rows
from leaderboard.ranking.trial import Trial
from tasks.scoring.estimate import mean
from tasks.task import Sample

MOST_CHANGES = 5
"""Random changes that are shown; of more, those with most runs."""


@dataclass(frozen=True, slots=True)
class NullEntry:
    """F, R, U and score of a model that stands for no method, or their means over the runs of a random change.

    Attributes:
        runs: 1, but for a random change the number of its seeds.
    """

    name: str
    runs: int
    forgetting: Number
    robustness: Number
    utility: Number
    score: Number


def null_entries(
    source: Source, here: Selection, replicating: ReplicatingTrials, row: Row, engine: str | None, *, matched: bool
) -> tuple[NullEntry, ...]:
    """The null entries of a group of trials; those of which nothing is known are left out.

    Args:
        replicating: with the items of the group's anchors and null trials.
        row: a trial of the group, whose anchors are used.
        engine: the engine whose numbers are used.
        matched: whether a random change is shown at matched utility, as the entries beside it are.
    """
    scale = here.measured.model(row["trial"], UNLEARNED, engine)
    found = here.measured.models(scale, row, engine, here.attacks)
    target, retrained = found.target, found.retrained
    synthetic = _synthetic(source, replicating, target, here.attacks)

    def alone(name: str, model: HeadlineMeasurements) -> tuple[str, int, Numbers]:
        made_up = {"trial": name, "entry": name, "status": str(Status.OK), "anchors": row["anchors"]}
        trial = dict.fromkeys(schema.columns("trials")) | made_up | {"anchor_ids": row["anchor_ids"]}
        numbers = trial_headlines(model, target, retrained, row["anchor_ids"], here.attacks)
        drawn = replicating.known(model, numbers, row, engine, here.attacks)
        return name, 1, combined(name, [Trial(trial, engine, numbers, replicates=drawn)])

    numbers = [
        *(alone(name, model) for name, model in zip(ANCHORS, (target, retrained), strict=True)),
        *_random_changes(here, replicating, matched=matched),
        *(alone(name, model) for name, model in synthetic.items()),
    ]
    return tuple(
        NullEntry(name, runs, one.forgetting, one.robustness, one.utility, one.score)
        for name, runs, one in numbers
        if any(part.value is not None for part in (one.forgetting, one.robustness, one.utility))
    )


def _random_changes(
    here: Selection, replicating: ReplicatingTrials, *, matched: bool
) -> Iterator[tuple[str, int, Numbers]]:
    """The name, number of runs and numbers of the null trials, the smallest change first."""
    entries: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in here.nulls:
        if row["status"] not in (Status.FAILED, Status.DIVERGED):
            entries[row["entry"]].append(row)
    most = sorted(entries.values(), key=lambda rows: (-len(rows), rows[0]["entry"]))[:MOST_CHANGES]
    norms = {rows[0]["entry"]: plain_mean([row["change_norm"] for row in rows]) for rows in most}
    for name, rows in _named(sorted(most, key=lambda rows: (norms[rows[0]["entry"]] or 0.0, rows[0]["entry"])), norms):
        trials = [here.trial(row, replicating) for row in rows]
        entry = combined(name, trials, here.matched_floor)
        numbers = entry.matched if matched else entry
        if numbers is not None:
            yield name, len(trials), numbers


def _named(
    entries: Sequence[list[dict[str, Any]]], norms: Mapping[str, float | None]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each with a name: its norm; where several have that, also which parameters were changed."""
    names = {id_: "random change" + ("" if norm is None else f" of norm {norm:.3g}") for id_, norm in norms.items()}
    often = Counter(names.values())
    for rows in entries:
        name = names[rows[0]["entry"]]
        if often[name] > 1:
            patterns = settings_of(rows[0]["spec"]).get("trainable") or ["*"]
            changed = ", ".join(map(str, patterns)) if isinstance(patterns, list) else str(patterns)
            name += f" in {shortened(changed, LONGEST_SETTING)}"
        yield name, rows


def _synthetic(
    source: Source, replicating: Replicating, target: HeadlineMeasurements, attacks: Sequence[str]
) -> dict[str, HeadlineMeasurements]:
    """The models that do not exist, as if they had been measured wherever the target was.

    What an older board lacks of their items is made from the target's samples, once.
    """
    asked = {
        metric: Key(samples, metric.probe, metric.metric)
        for (attack, _, metric), samples in target.samples.items()
        if attack == NONE
    }
    asked = {metric: key for metric, key in asked.items() if key in replicating.items}
    lacking = {key for key in asked.values() for name in SYNTHETIC if synthetic_key(name, key) not in replicating.items}
    if lacking and isinstance(source, Board):
        replicating.items = {**replicating.items, **_filled(source, lacking)}
    found = {name: _answering(name, replicating.items, target, asked, attacks) for name in SYNTHETIC}
    return {name: model for name, model in found.items() if model.estimates}


def _filled(board: Board, lacking: set[Key]) -> dict[Key, Scored]:
    """Items that are made of the board's samples and added to it, if it can be written."""
    samples: Mapping[tuple[str, str], Sequence[Sample]] = samples_of(
        board, {(key.samples, key.probe) for key in lacking}
    )
    rows = [
        row
        for key in sorted(lacking)
        if (of := samples.get((key.samples, key.probe)))
        for row in synthetic_rows(key, of)
    ]
    if not rows:
        return {}
    with suppress(BoardError, OSError):
        board.append("items", rows)
    return scored_items(schema.to_arrow("items", rows))


def _answering(
    name: str,
    items: Mapping[Key, Scored],
    target: HeadlineMeasurements,
    asked: Mapping[HeadlineMetric, Key],
    attacks: Sequence[str],
) -> HeadlineMeasurements:
    """A model with these items, without an attack and under each.

    It names no evaluations, so its numbers have no intervals. Constant answers tie with chance on some probes, and
    reading on other questions than the worst probe was chosen on lifts such a tie: a useless model would have U = .1.
    """
    cells = [(attack, point) for attack in dict.fromkeys([NONE, *attacks]) for point in target.points(attack) or {0}]
    keys = {metric: synthetic_key(name, key) for metric, key in asked.items()}
    numbers = {metric: mean(items[key].values.tolist()) for metric, key in keys.items() if key in items}
    estimates = {(*cell, metric): number for metric, number in numbers.items() for cell in cells}
    return MeanMeasurements(name, estimates, target.chances, {})  # with whatever seed: nothing is left to be averaged


def null_text(entry: NullEntry) -> str:
    """`target 0.00 (0.00..0.00), 0.00, 0.00, 1.00`: the score with its interval, F, R and U."""
    parts = (
        "–" if part.value is None else rounded(part.value)
        for part in (entry.forgetting, entry.robustness, entry.utility)
    )
    score = "–" if entry.score.value is None else rounded(entry.score.value)
    interval = f" ({'..'.join(map(rounded, entry.score.interval))})" if entry.score.interval else ""
    runs = f" ({entry.runs} runs)" if entry.runs > 1 else ""
    return f"{entry.name}{runs} {score}{interval}, {', '.join(parts)}"
