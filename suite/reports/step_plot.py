"""The course of unlearning runs as a plot: losses and norms, step by step, a line per run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leaderboard.board.schema import Status
from leaderboard.board.store import Board
from leaderboard.ranking.rank import Ranking
from suite.reports.figures import LINES, drawing, entry_name, figure_of, stem, style, write
from suite.training.step_log import onset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = {
    "forget_loss": ("forget loss", False),
    "retain_loss": ("retain loss", False),
    "gradient_norm": ("norm of gradient or estimate", True),
    "update_norm": ("norm of the update", True),
}
"""What is drawn: its name, and whether on a logarithmic axis."""
POINTS = 200
"""Points of a line: a run of more steps is drawn by the means of so many stretches."""


def plot_steps(board: Board, ranking: Ranking, folder: Path) -> list[Path]:
    """Plot the runs of a ranking's entries whose steps are on the board; where one began to diverge is a ring, where it
    ended a cross.

    Raises:
        StorageError: the plot cannot be written. The previous file is still there.
    """
    trials = {seed.trial: (entry, seed) for entry in ranking.entries for seed in entry.seeds}
    rows = sorted(board.read("steps", {"trial": sorted(trials)}).to_pylist(), key=lambda row: row["trial"])
    runs = [row for row in rows if row["step"]]
    if not runs:
        return []
    lines: Counter[str] = Counter()
    of_entry: dict[str, str] = {}
    sound: defaultdict[str, list[float]] = defaultdict(list)
    with drawing():
        figure, panels = figure_of(3.4 * len(DRAWN), 3.6 + 0.12 * len(ranking.entries), len(DRAWN), sharey=False)
        for run in runs:
            entry, seed = trials[run["trial"]]
            colour, _ = style(entry)
            first = entry.entry not in of_entry
            if first:
                of_entry[entry.entry] = LINES[lines[colour] % len(LINES)]
                lines[colour] += 1
            for axes, (name, (_, logarithmic)) in zip(panels, DRAWN.items(), strict=True):
                xs, ys = _points(run["step"], run[name], logarithmic)
                label = entry_name(entry) if first else None
                axes.plot(xs, ys, of_entry[entry.entry], color=colour, alpha=0.8, linewidth=1, label=label)
                if seed.status == Status.DIVERGED:
                    axes.plot(xs[-1:], ys[-1:], "x", color=colour, markersize=9, markeredgewidth=2)
                    if began := onset(run):
                        at = next((i for i, x in enumerate(xs) if x >= began[0] / max(run["step"])), len(xs))
                        axes.plot(xs[at : at + 1], ys[at : at + 1], "o", color=colour, markersize=9, fillstyle="none")
                else:
                    sound[name] += ys
        for axes, (name, (title, logarithmic)) in zip(panels, DRAWN.items(), strict=True):
            _finish(axes, title, logarithmic, sound[name])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", fontsize=7, ncols=3)
        return [write(figure, folder / f"{stem(ranking.task)}-steps.svg")]


def _points(steps: Sequence[int], values: Sequence[float | None], logarithmic: bool) -> tuple[list[float], list[float]]:
    """The share of the run and the mean value of each stretch; what is missing, or has no logarithm, is left out."""
    size, last = max(1, -(-len(steps) // POINTS)), max(steps)
    xs, ys = [], []
    for start in range(0, len(steps), size):
        known = [v for v in values[start : start + size] if v is not None and math.isfinite(v) and abs(v) < 1e30]
        mean = sum(known) / len(known) if known else 0.0
        if known and (mean > 0 or not logarithmic):
            xs.append(steps[min(start + size, len(steps)) - 1] / last)
            ys.append(mean)
    return xs, ys


def _finish(axes: Axes, title: str, logarithmic: bool, sound: Sequence[float]) -> None:
    """
    Args:
        sound: values of runs that did not diverge: those of the others would leave no room for them.
    """
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("share of the run", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    if logarithmic and any(np.size(line.get_xdata()) for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    elif sound:
        room = 0.05 * (max(sound) - min(sound)) or 1.0
        axes.set_ylim(min(sound) - room, max(sound) + room)
