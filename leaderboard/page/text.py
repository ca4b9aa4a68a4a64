"""Formats numbers for the page: two or three digits, a unit, and a dash where there is no number."""

from __future__ import annotations

from leaderboard.ranking.entry import Entry, Matched
from leaderboard.ranking.number import Number, rounded
from leaderboard.ranking.retention_matching import CURVE, matched_on

ABSENT = "\N{EN DASH}"
"""Shown where there is no number."""


def share(value: float | None) -> str:
    """A share with two decimals: `0.87`."""
    return ABSENT if value is None else rounded(round(value, 2) + 0.0).replace("-", "\N{MINUS SIGN}")


def interval(number: Number) -> str:
    """The 95 % interval: `0.81 to 0.93`; nothing where it is not known."""
    return "" if number.value is None or not number.interval else " to ".join(map(share, number.interval))


def fraction(value: float | None) -> str:
    """A share, clipped to 0 to 1, for a style sheet: `0.870`."""
    return f"{min(1.0, max(0.0, value or 0.0)):.3f}"


def seeds(number: Number) -> str:
    """A number of each run; nothing with one."""
    return ", ".join(map(share, number.seed_values)) if len(number.seed_values) > 1 else ""


def full(number: Number) -> str:
    """A number with its interval, its runs and its plain value, or why there is none."""
    if number.value is None:
        return number.reason or ABSENT
    parts = [share(number.value)]
    parts += [f"95 % interval {interval(number)}"] if number.interval else []
    parts += [f"runs {seeds(number)}"] if seeds(number) else []
    return ", ".join(parts + ([f"plain {share(number.plain)}"] if number.interval else []))


def recovery(entry: Entry, attack: str) -> str:
    """An attack's excess recovery, with the area under its curve if it has one, or the error that it ended in."""
    if attack in entry.failed:
        return f"{attack} {entry.failed[attack]}"
    summary = f"{attack}: {full(entry.recovery[attack])}"
    return f"{summary}; area under the curve {full(entry.areas[attack])}" if attack in entry.areas else summary


def matched(numbers: Matched, split: str) -> str:
    """An entry's headlines at matched utility, the share of its weights in the mix, and the barrier on the way there.

    Args:
        split: the questions that are ranked.
    """
    headlines = {
        "score": numbers.score,
        "F": numbers.forgetting,
        "R": numbers.robustness,
        "R hm": numbers.robustness_harmonic,
        "U": numbers.utility,
    }
    lines = [f"{name} {full(number)}" for name, number in headlines.items()]
    weights = f"share of the unlearned weights {full(numbers.mixing_weight)}"
    if CURVE in numbers.kinds:
        lines.append(f"barrier of U on the way to the target {full(numbers.barrier)}")
    return "\n".join([f"mixed back to U = {numbers.floor:g} on {matched_on(numbers.kinds, split)}: {weights}", *lines])


def count(value: float | None) -> str:
    """A count with up to three digits: `960`, `1.2k`, `3.4M`."""
    if value is None:
        return ABSENT
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration: `3.2 s`, `4.1 min`, `2.0 h`."""
    if value is None:
        return ABSENT
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s"


def short(attack: str | None) -> str:
    """An attack's name without its budget: `relearn`."""
    return ABSENT if attack is None else attack.partition("[")[0]


def settings(attack: str) -> str:
    """An attack's budget without its name: `samples=12, steps=20`."""
    return attack.partition("[")[2].removesuffix("]").replace(",", ", ")


def digest(value: str | None) -> str:
    """The first characters of each digest in an id, enough to tell them apart by eye."""
    return ABSENT if value is None else " : ".join(part[:10] for part in value.split(":"))
