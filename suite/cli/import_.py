"""`regrade import`: published logs of other suites, scored again by our metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite.cli.common import table
from suite.cli.outputs import output_file, say

if TYPE_CHECKING:
    from leaderboard.peers.line import Line
    from leaderboard.peers.open_unlearning import Imported

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the table as JSON.")]
BoardToo = Annotated[str | None, typer.Option(envvar="REGRADE_STORE", help="Put the rows on this store's board too.")]

app = typer.Typer(help="Results of other suites, scored again from their logs.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Results of other suites, scored again from their logs."""


@app.command("open-unlearning")
def open_unlearning(
    evaluation: Annotated[
        Path,
        typer.Argument(metavar="EVAL_DIR", help="Folder with TOFU_EVAL.json or MUSE_EVAL.json.", show_default=False),
    ],
    retrained: Annotated[
        Path | None, typer.Option(metavar="EVAL_DIR", help="The same of the model that never saw the forget set.")
    ] = None,
    json_file: JsonFile = None,
    store: BoardToo = None,
) -> None:
    """Score an open-unlearning evaluation from its logs, beside the published numbers."""
    from leaderboard.peers.logs import Log
    from leaderboard.peers.open_unlearning import read

    _check_outputs(store, json_file)
    imported = read(Log.read(evaluation), Log.read(retrained) if retrained else None)
    _show(imported, evaluation, json_file, store)


@app.command("tofu")
def tofu(
    evaluation: Annotated[
        Path,
        typer.Argument(metavar="LOG", help="eval_log_aggregated.json, or its folder.", show_default=False),
    ],
    retrained: Annotated[
        Path | None, typer.Option(metavar="LOG", help="The same of the model that never saw the forget set.")
    ] = None,
    json_file: JsonFile = None,
    store: BoardToo = None,
) -> None:
    """Score an evaluation of TOFU's own code from its log, beside the published numbers."""
    from leaderboard.peers.tofu import read, read_log

    _check_outputs(store, json_file)
    imported = read(read_log(evaluation), read_log(retrained) if retrained else None)
    _show(imported, evaluation, json_file, store)


def _check_outputs(store: str | None, json_file: Path | None) -> None:
    """Check where the results are to go, before the logs are read."""
    from suite.storage.location import store_folder

    if store:
        store_folder(store)
    if json_file:
        output_file(json_file, "lines.json")


def _show(imported: Imported, evaluation: Path, json_file: Path | None, store: str | None) -> None:
    """Print the table, and write what was asked for."""
    from leaderboard.peers.line import Verdict
    from leaderboard.peers.rows import add
    from leaderboard.storage import replace_file
    from suite.storage.store import Store

    lines = imported.lines
    names = ["published as", "metric", "published", "ours", "difference", "n", "unlike", "", "note"]
    table(f"{evaluation}: {imported.model.log.benchmark}", names, [_cells(line) for line in lines])
    counts = {verdict: sum(line.verdict is verdict for line in lines) for verdict in Verdict}
    summary = [", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)]
    if imported.unread:
        summary.append(f"Not read: {', '.join(imported.unread)}")
    if json_file:
        content = {"lines": [line.as_json() for line in lines], "not_read": list(imported.unread)}
        replace_file(json_file, json.dumps(content, indent=2, allow_nan=False) + "\n")
    if store:
        board = Store(store).board
        summary.append(f"Board: {board.path}, trial {add(board, imported)[:12]}")
    for line in summary:
        say(line)


def _cells(line: Line) -> list[str]:
    published = "null" if line.published is None else f"{line.published:.6g}"
    ours = f"{line.ours.value:.6g}" if line.ours.known else "null"
    difference = "–" if line.difference is None else f"{line.difference:.1e}"
    unlike = "–" if line.unlike is None else str(line.unlike)
    values = (published, ours, difference, str(line.ours.n), unlike)
    return [line.key, line.metric, *values, str(line.verdict), line.note]
