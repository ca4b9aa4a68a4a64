"""Numbers as a reader wants them: two or three digits, a unit, and a dash where there is none."""

from __future__ import annotations

from leaderboard.ranking.entry import Entry, Matched
from leaderboard.ranking.number import FEWEST_SEEDS, Number

ABSENT = "\N{EN DASH}"
"""Stands where there is no number."""


def share(value: float | None) -> str:
    """A share with two decimals: `0.87`."""
    return ABSENT if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def margin(number: Number) -> str:
    """Half of the 95 % interval over examples: `±0.03`; nothing where no error is known."""
    return "" if number.value is None or number.over_examples is None else f"±{number.margin:.2f}"


def fraction(value: float | None) -> str:
    """A share between 0 and 1 for a style sheet: `0.870`."""
    return f"{min(1.0, max(0.0, value or 0.0)):.3f}"


def seeds(number: Number) -> str:
    """What the seeds say of a number: their 95 % interval, or with few seeds their values, or nothing with one."""
    if number.seed_interval:
        return " to ".join(map(share, number.seed_interval))
    return ", ".join(map(share, number.seed_values)) if 1 < len(number.seed_values) < FEWEST_SEEDS else ""


def told(number: Number) -> str:
    """All of a number: `0.87 ±0.03, over seeds 0.81 to 0.93`, or why there is none."""
    if number.value is None:
        return number.reason or ABSENT
    parts = [" ".join(filter(None, (share(number.value), margin(number))))]
    return ", ".join(parts + ([f"over seeds {seeds(number)}"] if seeds(number) else []))


def recovery(entry: Entry, attack: str) -> str:
    """What an attack brings back, the area under its curve if it has one, or how it ended."""
    if attack in entry.failed:
        return f"{attack} {entry.failed[attack]}"
    said = f"{attack}: {told(entry.recovery[attack])}"
    return f"{said}; area under the curve {told(entry.areas[attack])}" if attack in entry.areas else said


def matched(numbers: Matched) -> str:
    """An entry's headlines once its weights are mixed back, and how much of them is left."""
    of = (("score", numbers.score), ("F", numbers.forgetting), ("R", numbers.robustness))
    of += (("R hm", numbers.robustness_harmonic), ("U", numbers.utility))
    lines = [f"{name} {told(number)}" for name, number in of]
    weights = f"share of the unlearned weights {told(numbers.mixing_weight)}"
    return "\n".join([f"mixed back to U = {numbers.floor:g} on dev: {weights}", *lines])


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
    """The first characters of each of the digests in an id, which are enough to tell them apart by eye."""
    return ABSENT if value is None else " : ".join(part[:10] for part in value.split(":"))
