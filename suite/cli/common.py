"""What several subcommands share: options, reading a spec from the command line, tables and progress."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaderboard.board.visible import shortened, visible
from suite.cli.outputs import notice

if TYPE_CHECKING:
    from rich.console import Console

    from leaderboard.board.store import Board
    from suite.runners import Outcome
    from suite.spec.search_space import Plan


def text(value: Any) -> Any:
    """A word of the command line as it is; for callbacks of options.

    Raises:
        SpecError: it is empty, or its bytes are not UTF-8, so that it could be neither shown nor stored.
    """
    from suite.config.errors import SpecError
    from tasks.plain_text import check_characters

    for word in value if isinstance(value, list | tuple) else [] if value is None else [str(value)]:
        try:
            check_characters(word)
        except ValueError as error:
            raise SpecError(f"{error}. Names and settings are written in UTF-8") from None
        if not word:
            raise SpecError("an argument is empty: '' names nothing")
    return value


def folder(value: str) -> str:
    """The value of `--store`, checked like `text`."""
    from suite.config.errors import SpecError

    if not value.strip():
        raise SpecError("--store: is empty. Name a folder, or leave the option out for ./store")
    return text(value)


Spec = Annotated[Path, typer.Argument(help="Spec file (YAML).", show_default=False, callback=text)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that override the file's: optimizer.lr=1e-4", callback=text
    ),
]
StoreDir = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="REGRADE_STORE",
        help="Folder with the stages and the board; may be shared.",
        callback=folder,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="Inference engine (regrade ls engines); overrides measure.engine of the file.",
    ),
]
STORE = "store"
LONGEST_CELL = 1000
"""Characters of a text in a table."""

_NUMBER = re.compile(r"(null|–|[-+±\d.,e ]*)")


def engine_override(engine: str | None) -> dict[str, Any]:
    """`--engine` as settings that override the file's."""
    return {"measure": {"engine": engine}} if engine else {}


def read_plan(spec: Path, overrides: Sequence[str] | None, extra: dict[str, Any] | None = None) -> Plan:
    """The plan in a file, with overrides applied.

    Args:
        extra: settings that override both.

    Raises:
        SpecError: what is wrong with it.
        MissingError: there is no such file, or no folder that it names.
    """
    from suite.spec.search_space import plan
    from suite.spec.yaml_file import load_file, merged

    data = load_file(spec, overrides or ())
    return plan(merged(data, extra) if extra else data)


def open_board(store: str, split: str) -> Board:
    """The board of a store, which may be read-only. What it leaves out while reading is said on standard error.

    Raises:
        SpecError: there is no such split.
        MissingError: the store has no board.
    """
    from leaderboard.board.store import Board
    from suite.config.errors import MissingError, SpecError
    from suite.storage.location import store_folder
    from tasks.plain_text import cut
    from tasks.task import Split

    if split not in list(Split):
        raise SpecError(f"--split {cut(split)}: unknown (allowed: {', '.join(Split)})")
    folder = store_folder(store) / "board"
    if not folder.is_dir():
        raise MissingError(f"{store}: there is no board here. Run something first: regrade run SPEC --store {store}")
    return Board(folder, tell=notice)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    # In a pipe or a file there is no terminal width: leave enough for a table.
    return Console(stderr=stderr, highlight=False, width=None if sys.stdout.isatty() else 160)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table on standard output; columns of numbers are right-aligned, long texts are shortened."""
    from rich.table import Table
    from rich.text import Text

    view = Table(header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numbers = index > 0 and all(_NUMBER.fullmatch(row[index]) for row in rows)
        view.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        view.add_row(
            *(Text(shortened(cell, LONGEST_CELL)) for cell in row)
        )  # as literal text: rtn[bits=4] is not markup
    out = console()
    out.print(Text(visible(title), style="italic"), soft_wrap=True)
    out.print(view)


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


class Progress:
    """A progress bar on a terminal, plain lines elsewhere; on standard error, so that standard output stays clean.

    Args:
        total: trials that are expected to have an outcome.
        on_count: called with the numbers of trials, done and expected, whenever one of them changes.
    """

    def __init__(self, total: int, on_count: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._on_count = on_count
        self.computed: dict[str, int] = {}
        self.reused: dict[str, int] = {}
        self.outcomes: list[Outcome] = []
        self._console = console(stderr=True)
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("trials", total=self.total)
        self._on_count(self.done, self.total)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Set the total number of trials."""
        self.total = total
        self._on_count(self.done, self.total)
        if self._bar:
            self._bar.update(self._task, total=total)

    def on_stage(self, label: str, stage: str) -> None:
        """Show that a stage of a trial is finished."""
        if self._bar:
            self._bar.update(self._task, description=f"{label}: {stage}")

    def on_outcome(self, outcome: Outcome) -> None:
        """Count and show a finished trial."""
        self.done += 1
        self._on_count(self.done, self.total)
        self.outcomes.append(outcome)
        self.failed += outcome.status == "failed"
        for total, added in ((self.computed, outcome.computed), (self.reused, outcome.reused)):
            for kind, count in added.items():
                total[kind] = total.get(kind, 0) + count
        self._console.print(visible(f"[{self.done}/{self.total}] {_outcome_line(outcome)}"), markup=False)
        if self._bar:
            self._bar.update(self._task, completed=self.done)

    @property
    def missing(self) -> int:
        """Number of trials that have no outcome."""
        return self.total - self.done

    def summary(self) -> str:
        computed, reused = sum(self.computed.values()), sum(self.reused.values())
        if not computed:
            return f"no stage computed: all {reused} were in the store"
        return f"{computed} stages computed, {reused} reused"


def _outcome_line(outcome: Outcome) -> str:
    parts = [outcome.label, outcome.status]
    for split, h in outcome.headlines.items():
        parts.append(
            f"{split} score {number(h['score'])} (F {number(h['forgetting'])}, R {number(h['robustness'])}, "
            f"U {number(h['utility'])})"
        )
    if outcome.reason:
        parts.append(outcome.reason)
    parts.append(f"{outcome.seconds:.0f} s")
    return ": ".join(parts[:2]) + ", " + ", ".join(parts[2:])
