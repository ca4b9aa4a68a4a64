"""A ranking as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from suite.cli.common import console

if TYPE_CHECKING:
    from leaderboard.ranking import Entry, Number, Ranking


def print_ranking(ranking: Ranking) -> None:
    """The entries in order, each number with its 95 % interval over examples and, with two seeds, both values."""
    view = Table(
        title=f"{ranking.task} ({ranking.split}), attacks {ranking.attack_set}",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    view.add_column("#", justify="right")
    view.add_column("entry", overflow="fold")
    view.add_column("grade")
    for name in ("score ↑", "F ↑", "R ↑", "U ↑"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("worst attack ↓", overflow="fold")
    view.add_column("values", justify="right")
    view.add_column("gradients", justify="right")
    view.add_column("s", justify="right")
    for entry in ranking.entries:
        view.add_row(
            str(entry.rank or "–"),
            entry.label,
            entry.grade or "–",
            _number(entry.score),
            _number(entry.forgetting),
            _number(entry.robustness, dim=entry.did_not_forget),
            _number(entry.utility),
            _worst(entry),
            _count(entry.cost.value_calls),
            _count(entry.cost.gradient_calls),
            _count(entry.cost.unlearn_seconds),
            style="dim" if entry.below_floor or entry.reason else "",
        )
    out = console()
    out.print(view)
    out.print(
        Text(
            f"\n± 95 % over examples (no interval over seeds with fewer than three); below it each seed's value. F "
            f"forgetting, R robustness to the worst attack, U utility, score their harmonic mean; first those with "
            f"U ≥ {ranking.floor:g}. Worst attack: share of the knowledge that it brings back.",
            style="dim",
        )
    )
    for entry in ranking.entries:
        for note in [*([entry.reason] if entry.reason else []), *entry.notes]:
            out.print(Text(f"{entry.label}: {note}", style="dim"))
    for group in ranking.left_out:
        out.print(
            Text(f"left out: {group.trials} trials with other anchors, data or engine ({group.engine})", style="dim")
        )


def _number(number: Number, dim: bool = False) -> Text:
    if number.value is None:
        return Text("–")
    text = f"{number.value:.2f} ±{number.margin:.2f}"
    if number.seed_interval:
        low, high = number.seed_interval
        text += f"\nseeds {low:.2f}..{high:.2f}"
    elif len(number.seed_values) > 1:
        text += "\n" + " / ".join("–" if v is None else f"{v:.2f}" for v in number.seed_values)
    return Text(text, style="dim" if dim else "")


def _worst(entry: Entry) -> str:
    recovery: Mapping[str, Number] = entry.recovery
    if entry.worst_attack is None or recovery[entry.worst_attack].value is None:
        return "–"
    return f"{recovery[entry.worst_attack].value:.2f} {entry.worst_attack}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
