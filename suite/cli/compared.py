"""A comparison of two entries as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from leaderboard.board.visible import shortened, visible
from suite.cli.common import console, table

if TYPE_CHECKING:
    from leaderboard.ranking.compare import Comparison, Line

SHOWN = 10
"""Questions that are printed; `--json` has more."""
LEGEND = (
    "A - B with its 95 % interval over questions and runs; with one run of an entry, over questions. Over these runs: "
    "the interval of what these very runs say, over questions alone. Plain: the worst of attacks and probes is chosen "
    "on the questions that it is read on. Under an attack: the share of the knowledge that it brings back, less is "
    "better."
)


def print_comparison(comparison: Comparison) -> None:
    """Every number of two entries and their difference, then the questions that differ most."""
    seeds = list(comparison.seeds)
    title = (
        f"{comparison.task} ({comparison.split}), attacks {comparison.attack_set}: "
        f"A {shortened(comparison.one_label)}, B {shortened(comparison.other_label)}"
    )
    columns = ["", "A", "B", "A - B", "95 %", "p", "over these runs", "plain", *seeds]
    table(title, columns, [_row(line, seeds) for line in comparison.lines])
    out = console()
    for sentence in comparison.sentences():
        out.print(Text(visible(sentence)))
    out.print(Text(LEGEND, style="dim"))
    if comparison.items:
        rows = [
            [moved.item, moved.probe, moved.metric, moved.attack, *map(_two, (moved.one, moved.other))]
            for moved in comparison.items[:SHOWN]
        ]
        table("Questions that differ most", ["question", "probe", "metric", "attack", "A", "B"], rows)


def _row(line: Line, seeds: list[str]) -> list[str]:
    found = line.difference
    plain = f"{_two(line.plain.estimate)} {_range(*line.plain.over_items)}" if line.plain else "–"
    return [
        line.label,
        *map(_two, (line.one, line.other, found.estimate)),
        _range(found.low, found.high),
        "–" if found.p is None else f"{found.p:.2g}",
        _range(*found.over_items),
        plain,
        *(_two(found.per_seed[seed]) for seed in seeds),
    ]


def _two(value: float) -> str:
    return f"{value:.2f}"


def _range(low: float, high: float) -> str:
    return f"{low:.2f}..{high:.2f}"
