"""A ranking as a Markdown table for a paper: knowledge after each attack, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from leaderboard.board.visible import visible
from leaderboard.ranking.entry import Entry, Numbers
from leaderboard.ranking.number import Number, interval, plain_mean, rounded
from leaderboard.ranking.rank import Ranking

ABSENT = "–"
GRADES = ("second", "first", "compressed", "zeroth", "hybrid")

_HOW = (
    "What is known after each attack beyond {zero}, as a share of the distance between the anchors, with the 95 % "
    "interval over {what}."
)


def recovery_table(ranking: Ranking, *, grades: bool = False, matched: bool = False) -> str:
    """Knowledge after each attack of the set: one row per entry, or per grade, and one column per attack.

    Args:
        grades: average the entries of a grade, each of which is the mean over its seeds; the interval is then over
            entries. An entry without a number under an attack leaves its grade without one.
        matched: use the numbers at matched utility; entries without them are left out.
    """
    shown = [(entry, found) for entry in ranking.entries if (found := entry.matched if matched else entry)]
    rows = _grade_rows(shown, ranking.attacks) if grades else _entry_rows(shown, ranking)
    what = "grade | entries" if grades else "entry | grade | seeds"
    head = f"| {what} | {' | '.join(_escaped(ranking.attack_labels[attack]) for attack in ranking.attacks)} |"
    names = 2 if grades else 3
    rule = "|" + " --- |" * (names - 1) + " ---: |" * (len(ranking.attacks) + 1)
    full = [f"{_escaped(short)}: `{name}`" for name, short in ranking.attack_labels.items() if short != name]
    zero = "chance" if ranking.group and ranking.group.at_chance else "what the attack teaches the retrained model"
    caption = _HOW.format(zero=zero, what="entries (Student's t)" if grades else "questions and runs")
    if matched and ranking.matched_floor is not None:
        until = f"{ranking.matched_floor:g} on {ranking.matched_on}"
        caption += f" Weights are mixed back toward the target's until utility is {until}."
    if ranking.group and ranking.mixes_engines:
        engines = _escaped(", ".join(ranking.group.engines))
        caption += f" Engines are mixed: {engines}. Each trial and its anchors were measured by one."
    if full:
        caption += f" Attacks of {ranking.attack_set}: {', '.join(full)}."
    return "\n".join([head, rule, *rows, "", caption])


def _entry_rows(shown: Sequence[tuple[Entry, Numbers]], ranking: Ranking) -> list[str]:
    def name(entry: Entry) -> str:
        return f"{entry.label} by {' and '.join(entry.engines)}" if ranking.mixes_engines else entry.label

    return [
        _row(
            [_escaped(name(entry)), _escaped(entry.grade or ABSENT), str(len(entry.seeds))],
            [_cell(numbers.recovery[attack], failed=attack in numbers.failed) for attack in ranking.attacks],
        )
        for entry, numbers in shown
    ]


def _grade_rows(shown: Sequence[tuple[Entry, Numbers]], attacks: Sequence[str]) -> list[str]:
    by_grade: dict[str, list[Numbers]] = {grade: [] for grade in GRADES}
    for entry, numbers in shown:
        by_grade.setdefault(entry.grade or ABSENT, []).append(numbers)
    return [
        _row(
            [_escaped(grade), str(len(same))],
            [_cell(_pooled([numbers.recovery[attack] for numbers in same])) for attack in attacks],
        )
        for grade, same in by_grade.items()
        if same
    ]


def _pooled(numbers: Sequence[Number]) -> Number:
    """The mean of several entries' numbers, and its interval over them."""
    mean = plain_mean([number.value for number in numbers])
    known = [number.value for number in numbers if number.value is not None]
    return Number(mean, None if mean is None else interval(known))


def _cell(number: Number, *, failed: bool = False) -> str:
    """`0.42 (0.31 to 0.53)`."""
    if number.value is None:
        return "failed" if failed else ABSENT
    cell = rounded(number.value)
    return f"{cell} ({' to '.join(map(rounded, number.interval))})" if number.interval else cell


def _row(names: Sequence[str], cells: Sequence[str]) -> str:
    return f"| {' | '.join([*names, *cells])} |"


def _escaped(text: str) -> str:
    """Foreign text, escaped for one cell of a table."""
    return visible(" ".join(text.split())).replace("\\", "\\\\").replace("|", "\\|")
