"""Plots of a ranking as SVG: utility against forgetting, recovery under each attack, and recovery curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.ranking.rank import Entry, Ranking
from leaderboard.storage import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As on the page: colours that colour-blind readers can tell apart, and a marker per grade besides.
GRADES = {
    "second": ("#009E73", "s"),
    "first": ("#0072B2", "o"),
    "compressed": ("#E69F00", "D"),
    "zeroth": ("#D55E00", "^"),
    "hybrid": ("#AA4499", "*"),
}
OTHER = ("#555555", "o")
LINES = ("-", "--", ":", "-.")
"""Line styles that distinguish entries of one grade."""
MOST_BARS = 4
"""Up to so many attacks are drawn as bars; for more, a heat map with numbers is easier to read."""
DARK = 0.65
"""Numbers in the heat map above this recovery are white."""
RECOVERY = "excess recovery (share)"


def plot(ranking: Ranking, folder: Path) -> list[Path]:
    """Plot the entries that have forgetting and utility; recovery curves only where an attack has one.

    Raises:
        StorageError: a plot cannot be written. The previous file is still there.
    """
    import matplotlib

    matplotlib.use("Agg")
    stem = ranking.task.replace("/", "-")
    shown = [e for e in ranking.entries if e.forgetting.value is not None and e.utility.value is not None]
    if not shown:
        return []
    attacks = _bars if len(ranking.attacks) <= MOST_BARS else _heat
    figures = {"front": _front(ranking, shown), "attacks": attacks(ranking, shown)}
    if with_curves := [attack for attack in ranking.attacks if any(attack in entry.curves for entry in shown)]:
        figures["curves"] = _curves(ranking, shown, with_curves)
    return [_write(figure, folder / f"{stem}-{name}.svg") for name, figure in figures.items()]


def _front(ranking: Ranking, entries: Sequence[Entry]) -> Figure:
    figure, [axes] = _figure(6.4, 4.6)
    for entry in entries:
        colour, marker = _style(entry)
        robustness = entry.robustness.value
        axes.errorbar(
            entry.utility.value,
            entry.forgetting.value,
            xerr=entry.utility.margin,
            yerr=entry.forgetting.margin,
            fmt=marker,
            color=colour,
            # the more opaque, the more robust
            alpha=0.25 + 0.75 * (robustness or 0.0),
            markersize=9,
            label=f"{entry.label} (R {'–' if robustness is None else f'{robustness:.2f}'})",
        )
    axes.axvline(ranking.floor, linestyle="--", color="#888888", linewidth=1)
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05), xlabel="utility U", ylabel="forgetting F", title=ranking.task)
    axes.legend(fontsize=7, loc="lower left")
    return figure


def _bars(ranking: Ranking, entries: Sequence[Entry]) -> Figure:
    figure, [axes] = _figure(6.4, 1.8 + 0.45 * len(entries))
    height = 0.8 / max(1, len(ranking.attacks))
    for index, attack in enumerate(ranking.attacks):
        values = [e.recovery[attack].value or 0.0 for e in entries]
        errors = [e.recovery[attack].margin for e in entries]
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
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(entries))], [e.label for e in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=RECOVERY, title=ranking.task)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    return figure


def _heat(ranking: Ranking, entries: Sequence[Entry]) -> Figure:
    columns, rows = len(ranking.attacks), len(entries)
    figure, [axes] = _figure(2.4 + 0.5 * columns, 1.8 + 0.3 * rows)
    values = [[e.recovery[attack].value for attack in ranking.attacks] for e in entries]
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
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
    axes.set_yticks(range(rows), [e.label for e in entries], fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(ranking.task)
    figure.colorbar(image, ax=axes, label=RECOVERY, fraction=0.04).ax.tick_params(labelsize=7)
    return figure


def _curves(ranking: Ranking, entries: Sequence[Entry], attacks: Sequence[str]) -> Figure:
    """One panel per attack: recovery at each point, with the 95 % interval over seeds, or over examples without one."""
    figure, panels = _figure(4.2 * len(attacks) + 0.4, 3.6 + 0.1 * len(entries), len(attacks))
    for axes, attack in zip(panels, attacks, strict=True):
        lines: Counter[str] = Counter()
        for entry in entries:
            colour, marker = _style(entry)
            curve = {point: it for point, it in entry.curves.get(attack, {}).items() if it.value is not None}
            points = list(curve)
            # Entries without a curve are labelled too, so that all panels share one legend.
            axes.plot(
                points,
                [it.value for it in curve.values()],
                LINES[lines[colour] % len(LINES)],
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.2,
                label=entry.label,
            )
            lines[colour] += 1
            bounds = [it.seed_interval or (it.value - it.margin, it.value + it.margin) for it in curve.values()]
            if bounds:
                axes.fill_between(points, *zip(*bounds, strict=True), color=colour, alpha=0.08, linewidth=0)
        axes.axhline(0.0, color="#888888", linewidth=0.8)
        axes.set(xlabel="point of the attack (steps)", title=ranking.attack_labels[attack])
    panels[0].set_ylabel(RECOVERY)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=3)
    return figure


def _recovery_text(entry: Entry, attack: str) -> str:
    value = entry.recovery[attack].value
    if value is not None:
        return f"{value:.2f}"
    return "failed" if attack in entry.failed else "–"


def _style(entry: Entry) -> tuple[str, str]:
    return GRADES.get(entry.grade or "", OTHER)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(width, height), layout="constrained", sharey=True, squeeze=False)
    return figure, list(axes[0])


def _write(figure: Figure, path: Path) -> Path:
    from matplotlib import pyplot

    content = BytesIO()
    figure.savefig(content, format="svg")
    pyplot.close(figure)
    replace_file(path, content.getvalue())
    return path
