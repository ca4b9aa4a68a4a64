"""A ranking in a text and as plots: the tables hold the ranking's numbers, and each plot what it is about."""

from __future__ import annotations

import io
import re
import statistics
from contextlib import redirect_stdout
from pathlib import Path
from xml.etree import ElementTree

import pytest
import scipy.stats

from leaderboard.board.store import Board
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.recovery_table import recovery_table
from suite.cli.report import report
from suite.reports.plots import plot
from tests.support.board_rows import entry_rows, fill, schema_tables, showcase, tables, wide_showcase


@pytest.fixture(scope="module")
def wide() -> Ranking:
    return rank(schema_tables(*wide_showcase()), "wide")


def read(table: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a Markdown table, cell by cell."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    head, rule, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(re.fullmatch("-+:?", cell) for cell in rule)
    assert {len(row) for row in rows} | {len(rule)} == {len(head)}
    return head, rows


def students(values: list[float]) -> str:
    """`mean (low to high)` by Student's t; from fewer than three values without the interval."""
    mean, n = statistics.fmean(values), len(values)
    if n < 3:
        return f"{mean:.2f}"
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=mean, scale=statistics.stdev(values) / n**0.5)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


@pytest.mark.parametrize("matched", [False, True])
def test_each_entry_is_a_row_with_its_numbers_and_intervals(wide: Ranking, matched: bool):
    head, rows = read(recovery_table(wide, matched=matched))
    assert head == ["entry", "grade", "seeds", *wide.attack_labels.values()]
    assert [row[0] for row in rows] == [entry.label for entry in wide.entries]
    for entry, row in zip(wide.entries, rows, strict=True):
        numbers = entry.matched if matched else entry
        assert row[1:3] == [entry.grade, str(len(entry.seeds))]
        for attack, cell in zip(wide.attacks, row[3:], strict=True):
            number = numbers.recovery[attack]
            if number.value is None:
                assert attack in numbers.failed and cell == "failed"
            else:
                assert number.value == pytest.approx(statistics.fmean(number.seed_values))
                if numbers.reason is not None:  # an attack failed, so nothing of it is compared
                    assert cell == f"{number.value:.2f}" and number.interval is None
                    continue
                low, high = number.interval
                assert cell == f"{number.value:.2f} ({low:.2f} to {high:.2f})"


def test_each_grade_is_the_mean_over_its_entries(wide: Ranking):
    _, rows = read(recovery_table(wide, grades=True))
    by_grade: dict[str, list[Entry]] = {}
    for entry in wide.entries:
        by_grade.setdefault(entry.grade, []).append(entry)
    assert {row[0]: row[1] for row in rows} == {grade: str(len(same)) for grade, same in by_grade.items()}
    assert [row[0] for row in rows] == ["second", "first", "compressed", "zeroth", "hybrid"]
    for grade, _, *cells in rows:
        for attack, cell in zip(wide.attacks, cells, strict=True):
            numbers = [entry.recovery[attack] for entry in by_grade[grade]]
            if any(number.value is None for number in numbers):
                assert cell == "–"
            else:
                assert cell == students([number.value for number in numbers])


def test_a_table_says_what_its_numbers_are(wide: Ranking):
    printed = recovery_table(wide, matched=True)
    assert "utility is 0.9 on dev" in printed and "what the attack teaches the retrained model" in printed
    for attack, label in wide.attack_labels.items():
        assert label == attack or f"{label}: `{attack}`" in printed
    assert "utility is" not in recovery_table(wide)
    at_chance = tables(entry_rows("a", 0.9, 0.8, 0.95, anchor_ids="target:chance"))
    assert "beyond chance" in recovery_table(rank(at_chance, "paper"))


def test_a_name_cannot_break_a_table():
    evil = rank(tables(entry_rows("a", 0.9, 0.8, 0.95, optimizer="a | b\n| c \\", grade="x|y")), "paper")
    for grades in (False, True):
        _, rows = read(recovery_table(evil, grades=grades))
        assert len(rows) == 1


def test_entries_without_mixtures_are_in_no_matched_table():
    plain = rank(tables(entry_rows("a", 0.9, 0.8, 0.95)), "paper")
    assert len(read(recovery_table(plain))[1]) == 1
    assert read(recovery_table(plain, matched=True))[1] == []


def test_the_command_prints_the_tables(tmp_path: Path, wide: Ranking):
    board = Board(tmp_path / "board")
    for trials, measurements in (showcase(), wide_showcase()):
        fill(board, trials, measurements)
    out = io.StringIO()
    with redirect_stdout(out):
        report(tmp_path, markdown=True)
    paper, _, both = out.getvalue().partition("## wide (test)")
    assert paper.startswith("## paper (test)") and "matched" not in paper
    for grades in (False, True):
        for matched in (False, True):
            assert recovery_table(wide, grades=grades, matched=matched) in both


def plot_text(path: Path) -> str:
    """The texts of a plot: matplotlib writes each as a comment beside its outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(path, parser).getroot()
    return "\n".join(node.text.strip() for node in root.iter() if node.tag is ElementTree.Comment)


def test_many_attacks_are_a_heat_map_with_numbers_and_curves_are_drawn(tmp_path: Path, wide: Ranking):
    plots = {path.stem: plot_text(path) for path in plot(wide, tmp_path)}
    assert plots.keys() == {"wide-front", "wide-attacks", "wide-curves"}
    for entry in wide.entries:
        assert all(entry.label in text for text in plots.values())
        for attack, number in entry.recovery.items():
            assert (f"{number.value:.2f}" if number.value is not None else "failed") in plots["wide-attacks"], attack
    assert all(label in plots["wide-attacks"] for label in wide.attack_labels.values())
    curves = plots["wide-curves"].splitlines()
    assert [label for label in wide.attack_labels.values() if label in curves] == ["relearn steps=24", "relearn_far"]


def test_few_attacks_are_bars_and_without_a_curve_none_is_drawn(tmp_path: Path):
    found = rank(schema_tables(*showcase()), "paper")
    plots = {path.stem: plot_text(path) for path in plot(found, tmp_path)}
    assert plots.keys() == {"paper-front", "paper-attacks"}
    assert all(label in plots["paper-attacks"] for label in found.attack_labels.values())
    assert plot(rank(tables(), "paper"), tmp_path) == []
