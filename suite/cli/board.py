"""`regrade board`: the ranked table in the terminal, the page, comparisons, and the files behind them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suite.cli.common import STORE, Json, StoreDir, open_board, print_json, table
from suite.cli.outputs import notice, output_file, say

if TYPE_CHECKING:
    from leaderboard.board.store import Board
    from leaderboard.ranking.rank import Ranking

app = typer.Typer(help="The leaderboard of a store.", no_args_is_help=True)

Task = Annotated[str | None, typer.Option(help="Task to rank; all of the store's by default.")]
SplitName = Annotated[str, typer.Option(help="test for headlines, dev for what a search saw.")]
Floor = Annotated[float, typer.Option(help="Utility that an entry needs to be ranked with the others.", min=0, max=1)]
Engine = Annotated[
    str | None, typer.Option("--engine", help="Rank what this engine measured; by default what most trials have.")
]
MixEngines = Annotated[
    bool, typer.Option("--mix-engines", help="Rank what different engines measured in one table, which says so.")
]
AttackSetName = Annotated[str | None, typer.Option("--attacks", help="Official attack set; the newest by default.")]


@app.command("show")
def show(
    store: StoreDir = STORE,
    task: Task = None,
    split: SplitName = "test",
    floor: Floor = 0.9,
    attacks: AttackSetName = None,
    engine: Engine = None,
    mix_engines: MixEngines = False,
    matched: Annotated[bool, typer.Option("--matched", help="Rank by the numbers at matched utility.")] = False,
    as_json: Json = False,
) -> None:
    """The ranked table."""
    board = open_board(store, split)
    rankings = _rankings(board, store, task, split, attacks, engine, mix_engines, floor=floor, matched=matched)
    if as_json:
        print_json([ranking.as_json() for ranking in rankings])
        return
    from suite.cli.ranked import print_ranking

    for ranking in rankings:
        print_ranking(ranking)


@app.command("page")
def page(
    store: StoreDir = STORE,
    out: Annotated[Path | None, typer.Option(help="File to write; STORE/board.html by default.")] = None,
    task: Task = None,
    split: SplitName = "test",
    floor: Floor = 0.9,
    attacks: AttackSetName = None,
    engine: Engine = None,
    mix_engines: MixEngines = False,
    as_json: Json = False,
) -> None:
    """Write the board as one static HTML file. The previous file stays until the new one is completely on disk."""
    from leaderboard.page import render
    from leaderboard.storage import replace_file
    from suite.storage.location import store_folder

    board = open_board(store, split)
    path = output_file((out or store_folder(store) / "board.html").absolute(), "board.html")
    rankings = _rankings(board, store, task, split, attacks, engine, mix_engines, floor=floor)
    replace_file(path, render(rankings, generated=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")))
    print_json({"page": str(path)}) if as_json else say(f"page: {path}")


@app.command("compare")
def compare(
    entries: Annotated[
        list[str],
        typer.Argument(metavar="A B [...]", help="Entries by name, or by id or its beginning.", show_default=False),
    ],
    store: StoreDir = STORE,
    task: Annotated[str | None, typer.Option(help="Task; needed where the store has several.")] = None,
    split: SplitName = "test",
    attacks: AttackSetName = None,
    engine: Engine = None,
    mix_engines: MixEngines = False,
    matched: Annotated[bool, typer.Option("--matched", help="Compare the numbers at matched utility.")] = False,
    floor: Annotated[
        float | None, typer.Option(help="With --matched: the utility that is matched; 0.9 by default.", min=0, max=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File of the picture; STORE/report/compare.svg by default.")] = None,
    as_json: Json = False,
) -> None:
    """By how much the first entry differs from each of the others, with intervals, run by run."""
    from leaderboard.ranking.compare import compare
    from leaderboard.ranking.rank import FLOOR
    from suite.cli.compared import print_comparison
    from suite.config.errors import SpecError
    from suite.reports.plots import plot_comparisons
    from suite.storage.location import store_folder

    if floor is not None and not matched:
        raise SpecError(
            "--floor: it is the utility of --matched. Give both, or neither to compare the weights as they are"
        )
    board = open_board(store, split)
    name, attack_set = _one_task(board, store, task, attacks, engine, mix_engines)
    path = output_file((out or store_folder(store) / "report" / "compare.svg").absolute(), "compare.svg")
    found = compare(
        board,
        name,
        split,
        entries,
        attack_set=attack_set,
        engine=engine,
        mix_engines=mix_engines,
        floor=FLOOR if matched and floor is None else floor,
    )
    plot_comparisons(found, path)
    if as_json:
        print_json([comparison.as_json() for comparison in found])
        return
    for comparison in found:
        print_comparison(comparison)
    say(f"plot: {path}")


@app.command("compact")
def compact(store: StoreDir = STORE, as_json: Json = False) -> None:
    """Merge the small files of the board into few. What it shows stays the same."""
    tables = open_board(store, "test").compact()
    for stays in (one for found in tables for one in found.stays):
        notice(stays)
    if as_json:
        print_json([found.as_json() for found in tables])
        return
    rows = [[found.table, str(found.before), str(found.after), str(len(found.stays))] for found in tables]
    table(f"{store}: files of the board", ["table", "before", "after", "not merged"], rows)


def _one_task(
    board: Board, store: str, task: str | None, attacks: str | None, engine: str | None, mix_engines: bool
) -> tuple[str, str | None]:
    """The task to compare entries on, and the attack set."""
    from suite.config.errors import SpecError

    tasks, attack_sets = _tasks(board, store, task, attacks, engine, mix_engines)
    if len(tasks) > 1:
        raise SpecError(f"--task: this board has several. Name one of {', '.join(tasks)}")
    return tasks[0], attack_sets[tasks[0]]


def _rankings(
    board: Board,
    store: str,
    task: str | None,
    split: str,
    attacks: str | None,
    engine: str | None,
    mix_engines: bool,
    **options: Any,
) -> list[Ranking]:
    from leaderboard.ranking.measured import engines_of
    from leaderboard.ranking.rank import rank
    from suite.config.errors import MissingError
    from suite.config.settings import nearest

    ranked_tasks, attack_sets = _tasks(board, store, task, attacks, engine, mix_engines)
    if engine:
        engines_by_task = {name: engines_of(board, name, split) for name in ranked_tasks}
        engines = sorted(set().union(*engines_by_task.values()))
        if engine not in engines:
            choices = f"{nearest(engine, engines)} (there are: {', '.join(engines) or 'none'})"
            raise MissingError(f"--engine {engine}: it measured no trial that is ranked here.{choices}")
        ranked_tasks = [name for name in ranked_tasks if engine in engines_by_task[name]]
    options |= {"engine": engine, "mix_engines": mix_engines}
    return [rank(board, name, split, attack_set=attack_sets[name], **options) for name in ranked_tasks]


def _tasks(
    board: Board, store: str, task: str | None, attacks: str | None, engine: str | None, mix_engines: bool
) -> tuple[list[str], dict[str, str | None]]:
    """The tasks that are meant, and by task the attack set."""
    from suite.config.errors import MissingError, SpecError
    from suite.config.settings import nearest
    from suite.reports.report import tasks_of
    from tasks import TASKS

    if engine and mix_engines:
        raise SpecError(f"--mix-engines: with --engine {engine} there is one engine only. Leave one of them out")
    on_board = tasks_of(board, notice)
    if task and task not in TASKS and task not in on_board:
        raise SpecError(f"--task {task}: unknown.{nearest(task, TASKS)} (allowed: {', '.join(TASKS.titles)})")
    sets = {one: TASKS[one].attack_sets if one in TASKS else () for one in (*TASKS, *on_board)}
    known = {name for names in sets.values() for name in names}
    if attacks and attacks not in known:
        raise SpecError(f"--attacks {attacks}: unknown.{nearest(attacks, known)} (allowed: {', '.join(sorted(known))})")
    if task and task not in on_board:
        raise MissingError(f"--task {task}: this board has no such trials (there are: {', '.join(on_board) or 'none'})")
    if not on_board:
        raise MissingError(f"--store {store}: the board has no trials yet that can be ranked")
    ranked_tasks = [task] if task else on_board
    attack_sets = {name: attacks if attacks in sets[name] else None for name in ranked_tasks}
    return ranked_tasks, attack_sets
