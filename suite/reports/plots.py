"""Plots of a ranking as SVG: utility against forgetting, recovery under each attack, and recovery curves.

Names are foreign text: formulas are not set, control characters are written out, and long names are cut. Numbers may
be far from 0 to 1, where nothing can be compared any more: the axes end before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.board.visible import shortened
from leaderboard.ranking.compare import Comparison
from leaderboard.ranking.comparison.difference import LEVEL
from leaderboard.ranking.number import Number, rounded
from leaderboard.ranking.rank import Entry, Ranking
from suite.reports.figures import LINES, LONGEST_NAME, OTHER, drawing, entry_name, figure_of, stem, style, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 4
"""Up to so many attacks are drawn as bars; for more, a heat map with numbers is easier to read."""
DARK = 0.65
"""Numbers in the heat map above this recovery are white."""
FARTHEST = 2.0
"""Recovery beyond -1 and 2 is not drawn: knowledge is 0 to 1, and noise goes a little further."""
RECOVERY = "excess recovery (share)"
GOOD, BAD = "#0072B2", "#D55E00"
"""Differences that are told apart, for the first entry and against it."""


def plot(ranking: Ranking, folder: Path) -> list[Path]:
    """Plot the entries that have forgetting and utility; recovery curves only where an attack has one.

    Raises:
        StorageError: a plot cannot be written. The previous file is still there.
    """
    shown = [e for e in ranking.entries if e.forgetting.value is not None and e.utility.value is not None]
    if not shown:
        return []
    attacks = _bars if len(ranking.attacks) <= MOST_BARS else _heat
    with drawing():
        figures = {"front": _front(ranking, shown), "attacks": attacks(ranking, shown)}
        if with_curves := [attack for attack in ranking.attacks if any(attack in entry.curves for entry in shown)]:
            figures["curves"] = _curves(ranking, shown, with_curves)
        return [write(figure, folder / f"{stem(ranking.task)}-{name}.svg") for name, figure in figures.items()]


def plot_comparisons(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Plot paired differences with their 95 % intervals, a row per headline and attack, a panel per comparison.

    Raises:
        StorageError: the plot cannot be written. The previous file is still there.
    """
    with drawing():
        figure, panels = figure_of(
            2.2 + 3.6 * len(comparisons), 1.4 + 0.27 * len(comparisons[0].lines), len(comparisons)
        )
        for axes, comparison in zip(panels, comparisons, strict=True):
            _differences(axes, comparison)
        return write(figure, path)


def _differences(axes: Axes, comparison: Comparison) -> None:
    """Headlines above, attacks below: there less is better, so their side of the axis is named apart."""
    lines = comparison.lines
    rows = [len(lines) - index for index in range(len(lines))]
    for row, line in zip(rows, lines, strict=True):
        found, better = line.difference, -1 if line.attack else 1
        told = found.p is not None and found.p < LEVEL
        colour = OTHER[0] if not told else (GOOD if better * found.estimate > 0 else BAD)
        low, high = (min(FARTHEST, max(-FARTHEST, end)) for end in (found.low, found.high))
        axes.plot([low, high], [row, row], color=colour, linewidth=2)
        axes.plot([found.estimate], [row], marker="s" if line.attack else "o", color=colour, markersize=6)
        axes.plot(list(found.per_seed.values()), [row] * len(found.per_seed), "|", color=colour, markersize=9)
    axes.axvline(0.0, color="#888888", linewidth=0.8)
    first_attack = next((row for row, line in zip(rows, lines, strict=True) if line.attack), 0)
    axes.axhline(first_attack + 0.5, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_yticks(rows, [shortened(line.label, LONGEST_NAME) for line in lines], fontsize=8)
    names = [shortened(name, 36) for name in (comparison.one_label, comparison.other_label)]
    where = f", {comparison.matched}" if comparison.matched else ""
    axes.set_title(f"{names[0]} less {names[1]}{where}", fontsize=8)
    axes.set_xlabel(
        "difference (lines: 95 %; ticks: single runs)\nround: more is better; square, under attack: less is", fontsize=7
    )


def _bar(number: Number) -> tuple[float, float]:
    """How far the 95 % interval reaches below and above a number, as far as it can be seen."""
    if number.value is None or not number.interval:
        return 0.0, 0.0
    low, high = number.interval
    return min(max(number.value - low, 0.0), 2 * FARTHEST), min(max(high - number.value, 0.0), 2 * FARTHEST)


def _near(value: float) -> float:
    """A recovery, or the border of the axis on its side."""
    return min(FARTHEST, max(1.0 - FARTHEST, value))


def _front(ranking: Ranking, entries: Sequence[Entry]) -> Figure:
    figure, [axes] = figure_of(6.4, 4.6)
    for entry in entries:
        utility, forgetting, robustness = entry.utility.value, entry.forgetting.value, entry.robustness.value
        if utility is None or forgetting is None:
            continue
        colour, marker = style(entry)
        axes.errorbar(
            utility,
            forgetting,
            xerr=[[side] for side in _bar(entry.utility)],
            yerr=[[side] for side in _bar(entry.forgetting)],
            fmt=marker,
            color=colour,
            # the more opaque, the more robust
            alpha=0.25 + 0.75 * (robustness or 0.0),
            markersize=9,
            label=f"{entry_name(entry)} (R {'–' if robustness is None else f'{robustness:.2f}'})",
        )
    axes.axvline(ranking.floor, linestyle="--", color="#888888", linewidth=1)
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05), xlabel="utility U", ylabel="forgetting F", title=_title(ranking))
    axes.legend(fontsize=7, loc="lower left")
    return figure


def _bars(ranking: Ranking, entries: Sequence[Entry]) -> Figure:
    figure, [axes] = figure_of(6.4, 1.8 + 0.45 * len(entries))
    height = 0.8 / max(1, len(ranking.attacks))
    for index, attack in enumerate(ranking.attacks):
        values = [_near(e.recovery[attack].value or 0.0) for e in entries]
        errors = list(zip(*(_bar(e.recovery[attack]) for e in entries), strict=True)) or None
        positions = [row + index * height for row in range(len(entries))]
        name = ranking.attack_labels[attack]
        axes.barh(positions, values, height=height, xerr=errors, label=name, error_kw={"linewidth": 0.8})
        for position, entry in zip(positions, entries, strict=True):
            if entry.recovery[attack].value is None:
                axes.text(
                    0.005,
                    position,
                    _recovery_text(entry, attack),
                    fontsize=6,
                    verticalalignment="center",
                    style="italic",
                )
    axes.set_yticks(
        [row + 0.4 - height / 2 for row in range(len(entries))], [entry_name(e) for e in entries], fontsize=8
    )
    axes.invert_yaxis()
    axes.set(xlabel=RECOVERY, title=_title(ranking))
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    return figure


def _heat(ranking: Ranking, entries: Sequence[Entry]) -> Figure:
    columns, rows = len(ranking.attacks), len(entries)
    figure, [axes] = figure_of(2.4 + 0.5 * columns, 1.8 + 0.3 * rows)
    values = [[e.recovery[attack].value for attack in ranking.attacks] for e in entries]
    numbers = [[float("nan") if value is None else _near(value) for value in row] for row in values]
    image = axes.imshow(numbers, cmap="Oranges", vmin=0.0, vmax=1.0, aspect="auto")
    for row, entry in enumerate(entries):
        for column, attack in enumerate(ranking.attacks):
            value = values[row][column]
            axes.text(
                column,
                row,
                _recovery_text(entry, attack),
                fontsize=7 if value is not None else 6,
                color="white" if value is not None and value > DARK else "black",
                fontweight="bold" if attack == entry.worst_attack else "normal",
                horizontalalignment="center",
                verticalalignment="center",
            )
    labels = [ranking.attack_labels[attack] for attack in ranking.attacks]
    axes.set_xticks(range(columns), labels, fontsize=8, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), [entry_name(e) for e in entries], fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(_title(ranking))
    figure.colorbar(image, ax=axes, label=RECOVERY, fraction=0.04).ax.tick_params(labelsize=7)
    return figure


def _curves(ranking: Ranking, entries: Sequence[Entry], attacks: Sequence[str]) -> Figure:
    """One panel per attack: recovery at each point, with the 95 % interval over seeds, or over examples without one."""
    figure, panels = figure_of(4.2 * len(attacks) + 0.4, 3.6 + 0.1 * len(entries), len(attacks))
    for axes, attack in zip(panels, attacks, strict=True):
        lines: Counter[str] = Counter()
        for entry in entries:
            colour, marker = style(entry)
            curve = {
                point: (it.value, it.interval or (it.value, it.value))
                for point, it in entry.curves.get(attack, {}).items()
                if it.value is not None
            }
            points = list(curve)
            # Entries without a curve are labelled too, so that all panels share one legend.
            axes.plot(
                points,
                [_near(value) for value, _ in curve.values()],
                LINES[lines[colour] % len(LINES)],
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.2,
                label=entry_name(entry),
            )
            lines[colour] += 1
            lows = [_near(low) for _, (low, _) in curve.values()]
            highs = [_near(high) for _, (_, high) in curve.values()]
            if points:
                axes.fill_between(points, lows, highs, color=colour, alpha=0.08, linewidth=0)
        axes.axhline(0.0, color="#888888", linewidth=0.8)
        axes.set(xlabel="point of the attack (steps)", title=ranking.attack_labels[attack])
    panels[0].set_ylabel(RECOVERY)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=3)
    return figure


def _recovery_text(entry: Entry, attack: str) -> str:
    value = entry.recovery[attack].value
    if value is not None:
        return rounded(value)
    return "failed" if attack in entry.failed else "–"


def _title(ranking: Ranking) -> str:
    return shortened(ranking.task, LONGEST_NAME)
