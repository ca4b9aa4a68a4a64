"""From measurement rows to one trial's headlines: F, R, U, the score, and what each attack brings back.

Only arithmetic that `tasks.scoring.headline` defines, put over the rows: which terms belong together, and what is said
when one of them is missing. A term that is missing makes its headline null; it is never left out of a maximum, because
the missing one could be the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from leaderboard.board.schema import CHANCE, Status
from tasks.scoring.estimate import Estimate
from tasks.scoring.headline import (
    area,
    excess_recovery,
    harmonic_mean,
    knowledge,
    largest,
    share_kept,
    share_lost,
    smallest,
)

NONE = "none"
"""The attack that does nothing."""


class Question(NamedTuple):
    """What a headline asks: a metric of a probe, standing for `knowledge` or for `utility`."""

    headline: str
    probe: str
    subset: str
    metric: str


@dataclass(frozen=True, slots=True)
class Answers:
    """The headline measurements of one model, by attack, point on the attack's curve, and question.

    Attributes:
        failed: attacks that ended in an error, with what it said.
    """

    model: str
    estimates: Mapping[tuple[str, int, Question], Estimate]
    chances: Mapping[Question, float]
    failed: Mapping[str, str]

    @classmethod
    def of(cls, model: str, rows: Iterable[Mapping[str, Any]]) -> Self:
        """The answers in rows of the table `measurements`; `model` is the word for it in a reason."""
        estimates: dict[tuple[str, int, Question], Estimate] = {}
        chances: dict[Question, float] = {}
        errors: dict[tuple[str, int], str] = {}
        for row in rows:
            question = Question(row["headline"], row["probe"], row["subset"], row["metric"])
            estimates[row["attack"], row["point"], question] = estimate(row)
            chances[question] = row["chance"] or 0.0
            if row["status"] == Status.FAILED:
                errors[row["attack"], row["point"]] = row["reason"] or "no reason was given"
        failed: dict[str, str] = {}
        for attack, point in sorted(errors):
            failed.setdefault(attack, errors[attack, point])
        return cls(model, estimates, chances, failed)

    def questions(self, headline: str) -> set[Question]:
        return {question for question in self.chances if question.headline == headline}

    def points(self, attack: str) -> set[int]:
        return {point for name, point, _ in self.estimates if name == attack}

    def under(self, attack: str, point: int, question: Question) -> Estimate:
        """The answer to a question after an attack, null with the reason where it was not asked."""
        missing = f"{question.probe} {question.metric} was not measured on the {self.model} model"
        where = "" if attack == NONE else f" under {attack} at {point}"
        return self.estimates.get((attack, point, question), Estimate.null(missing + where))

    def plain(self, question: Question) -> Estimate:
        return self.under(NONE, 0, question)


class AtChance(Answers):
    """What stands for a retrained model where none can be had: chance, under any attack.

    What an attack teaches is then counted as relapse.
    """

    @classmethod
    def beside(cls, target: Answers) -> Self:
        """Chance on the questions that the target was asked."""
        return cls(CHANCE, target.estimates, target.chances, {})

    def under(self, attack: str, point: int, question: Question) -> Estimate:
        asked = self.estimates.get((NONE, 0, question))
        return Estimate(self.chances.get(question, 0.0), 0.0, asked.n if asked else 0)


def trial_headlines(
    unlearned: Answers, target: Answers, retrained: Answers, anchor_ids: str | None, attacks: Sequence[str]
) -> Headlines:
    """The headlines of an unlearned model between its anchors: the one place where F, R and U are decided.

    What has forgotten everything is the retrained model, or chance where the ids of the anchors say that none was.
    """
    return headlines(unlearned, target, AtChance.beside(target) if at_chance(anchor_ids) else retrained, attacks)


def at_chance(anchor_ids: str | None) -> bool:
    """Whether the ids of the anchors say that chance stands for the retrained model."""
    return (anchor_ids or "").endswith(f":{CHANCE}")


@dataclass(frozen=True, slots=True)
class Headlines:
    """One trial's numbers, each with its standard error over examples or the reason why there is none.

    Attributes:
        forgetting: F, 1 - clip(knowledge).
        robustness: R, 1 - clip(worst excess recovery over the attack set, `none` included), so R <= F.
        robustness_harmonic: harmonic mean over the same set of 1 - clip(excess recovery), so never below R.
        utility: U, the smallest share of the target's utility that was kept.
        score: harmonic mean of F, R and U.
        recovery: per attack the largest excess recovery over the task's knowledge probes and the attack's points, as
            a share of the distance between the anchors: 0 is nothing beyond what the attack teaches, 1 is all of it.
        curves: per attack with more than one point the excess recovery at each, the largest over the knowledge probes.
            Point 0 is before the attack.
        areas: per such attack the area under its curve, as a share of its length.
        failed: attacks that ended in an error, with what it said.
    """

    forgetting: Estimate
    robustness: Estimate
    robustness_harmonic: Estimate
    utility: Estimate
    score: Estimate
    recovery: Mapping[str, Estimate]
    curves: Mapping[str, Mapping[int, Estimate]]
    areas: Mapping[str, Estimate]
    failed: Mapping[str, str]

    @classmethod
    def null(cls, missing: Estimate, attacks: Iterable[str]) -> Self:
        """The headlines of what was not measured."""
        return cls(*[missing] * 5, dict.fromkeys(attacks, missing), {}, {}, {})


def headlines(unlearned: Answers, target: Answers, retrained: Answers, attacks: Sequence[str]) -> Headlines:
    """A trial's headlines from its own answers, those of its anchors, and the attacks of the official set."""
    attacks = list(dict.fromkeys([NONE, *attacks]))
    failed = {attack: why for attack in attacks if (why := _failure(attack, unlearned, retrained))}
    points = {attack: _points(attack, unlearned, target, retrained) for attack in attacks}
    recovery = {
        attack: Estimate.null(f"{attack} {failed[attack]}") if attack in failed else largest(points[attack].values())
        for attack in attacks
    }
    curves = {
        attack: {0: recovery[NONE], **points[attack]}
        for attack in attacks
        if len(points[attack]) > 1 and attack not in failed
    }
    forgetting = share_lost(recovery[NONE])
    unknown = _unknown(recovery, [attack for attack in attacks if not unlearned.points(attack)])
    robustness = unknown or share_lost(largest(recovery.values()))
    harmonic = unknown or harmonic_mean(*map(share_lost, recovery.values()), dependent=True)
    utility = kept(unlearned, target)
    return Headlines(
        forgetting,
        robustness,
        harmonic,
        utility,
        harmonic_mean(forgetting, robustness, utility),
        recovery,
        curves,
        {attack: area(curve) for attack, curve in curves.items()},
        failed,
    )


def kept(model: Answers, target: Answers) -> Estimate:
    """Utility of a model: the smallest share of the target's, over the task's utility probes."""
    questions = sorted(model.questions("utility") | target.questions("utility"))
    if not questions:
        return Estimate.null("utility was not measured")
    return smallest(
        share_kept(model.plain(question), target.plain(question), target.chances.get(question, 0.0))
        for question in questions
    )


def _points(attack: str, unlearned: Answers, target: Answers, retrained: Answers) -> dict[int, Estimate]:
    """Excess recovery at each point of an attack, the largest over the knowledge questions; one null if none can be."""
    questions = sorted(unlearned.questions("knowledge") | target.questions("knowledge"))
    if not questions:
        return {0: Estimate.null("knowledge was not measured")}
    if not retrained.estimates:
        return {0: Estimate.null("no retrained model was measured, so there is no zero to recover from")}
    if not unlearned.points(attack):
        return {0: Estimate.null(f"not measured under {attack}")}
    if attack == NONE:
        return {0: largest(knowledge(unlearned.plain(q), target.plain(q), retrained.plain(q)) for q in questions)}

    def excess(point: int, question: Question) -> Estimate:
        both = unlearned.under(attack, point, question), retrained.under(attack, point, question)
        return excess_recovery(*both, target.plain(question), retrained.plain(question))

    points = sorted(unlearned.points(attack) | retrained.points(attack))
    return {point: largest(excess(point, question) for question in questions) for point in points}


def _failure(attack: str, unlearned: Answers, retrained: Answers) -> str | None:
    """How an attack ended on a model that it is needed on: `failed: OutOfMemoryError: ...`."""
    for model, where in ((unlearned, ""), (retrained, " on the retrained model")):
        if attack in model.failed:
            return f"failed{where}: {model.failed[attack]}"
    return None


def _unknown(recovery: Mapping[str, Estimate], not_run: Sequence[str]) -> Estimate | None:
    """Why there is no robustness, if there is none: every attack that is missing, then what went wrong with others."""
    reasons = [f"not measured under {', '.join(not_run)}"] if not_run else []
    reasons += [found.reason for attack, found in recovery.items() if not found.known and attack not in not_run]
    return Estimate.null("; ".join(dict.fromkeys(reasons))) if reasons else None


def estimate(row: Mapping[str, Any]) -> Estimate:
    """The number in a row of the table `measurements`; null where it is not finite."""
    value, error, n = row["value"], row["stderr"], row["n"] or 0
    if value is None or not math.isfinite(value):
        return Estimate.null(row["reason"] or f"{row['probe']} {row['metric']} has no value", n)
    return Estimate(value, error if error is not None and math.isfinite(error) else None, n)
