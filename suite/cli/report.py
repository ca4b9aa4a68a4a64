"""`regrade report`: tables and plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite.cli.common import Json, open_board, print_json, table
from suite.cli.outputs import notice, output_folder, say

if TYPE_CHECKING:
    from leaderboard.ranking.rank import Ranking


def report(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a run or sweep.", show_default=False)],
    split: Annotated[str, typer.Option(help="test or dev.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for the plots; STORE/report by default.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print only what is known after each attack, as Markdown tables.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show ranked tables, plots, and how much each setting mattered."""
    from suite.cli.ranked import print_ranking
    from suite.reports import plots as drawing
    from suite.reports import report as reports
    from suite.reports.step_plot import plot_steps
    from suite.storage.location import store_folder

    board = open_board(store, split)
    folder = out or store_folder(store) / "report"
    if not markdown:
        output_folder(folder)
    rankings = reports.rankings(board, split, notice)
    if markdown:
        print("\n\n".join(map(_tables, rankings)))
        return
    plots = {
        ranking.task: [*drawing.plot(ranking, folder), *plot_steps(board, ranking, folder)] for ranking in rankings
    }
    knobs = {ranking.task: reports.knobs(board, ranking) for ranking in rankings}
    if as_json:
        print_json(
            [
                {
                    "ranking": r.as_json(),
                    "plots": [str(path) for path in plots[r.task]],
                    "knobs": [{"key": k.key, "importance": k.importance, "values": k.values} for k in knobs[r.task]],
                }
                for r in rankings
            ]
        )
        return
    for ranking in rankings:
        print_ranking(ranking)
        if knobs[ranking.task]:
            rows = [[k.key, str(k.values), f"{k.importance:.2f}"] for k in knobs[ranking.task]]
            table("What each knob was worth (share of the score's variance)", ["setting", "values", "worth"], rows)
        for path in plots[ranking.task]:
            say(f"plot: {path}")


def _tables(ranking: Ranking) -> str:
    """Recovery by entry and by grade; once more at matched utility where that was measured."""
    from leaderboard.ranking.recovery_table import recovery_table

    parts = [f"## {ranking.task} ({ranking.split})"]
    for matched in (False, True) if ranking.matched_floor is not None else (False,):
        if matched:
            parts.append("### At matched utility")
        parts += [recovery_table(ranking, grades=grades, matched=matched) for grades in (False, True)]
    return "\n\n".join(parts)
