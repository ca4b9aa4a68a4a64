"""What follows from a ranking in words: the same sentences on the page and in the terminal, and the numbers in JSON."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.store import Board
from leaderboard.page import render
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.verdict import MOST_NAMED, MOST_TIES, RULE
from tests.support.board_rows import anchor_rows, entry_rows, fill, runs_of, showcase
from tests.support.command import regrade

Runs = list[tuple[Any, Any]]


def close(name: str, score: float, place: int) -> Runs:
    """Three runs of which Student's test tells little: each entry's go up and down at other seeds."""
    away = [[-0.06, 0.06, 0.0], [0.0, -0.06, 0.06], [0.06, 0.0, -0.06]][place % 3]
    runs = [(seed, score + shift) for seed, shift in enumerate(away, 1)]
    return [entry_rows(name, x, x, x, seed, optimizer=name) for seed, x in runs]


WORLDS: dict[str, Runs] = {
    "a leader": [*runs_of("a", 0.9, 0.8, 0.95, optimizer="one"), *runs_of("b", 0.5, 0.4, 0.95, optimizer="two")],
    "one entry": runs_of("a", 0.9, 0.8, 0.95),
    "provisional ones": [*runs_of("a", 0.9, 0.8, 0.95, 1), *runs_of("b", 0.5, 0.4, 0.95, 2, optimizer="two")],
    "ties": [run for place in range(9) for run in close(f"opt{place}", 0.8 - place / 100, place)],
    "markup": [*close("<b>&[bold]", 0.8, 0), *close("x\x1b[2J\nregrade: all is well", 0.79, 1)],
    "long names": [*close("x" * 5000, 0.8, 0), *close("y" * 5000, 0.79, 1)],
    "nothing": [],
}


@pytest.fixture(params=[*WORLDS, "the showcase"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Board:
    found = Board(tmp_path / "board")
    if request.param == "the showcase":
        fill(found, *showcase(), noise=0.2)
    else:
        runs = WORLDS[request.param]
        failed = entry_rows("failed", 0.5, 0.5, 0.5, status="failed", reason="out of memory")[:1]
        trials = [row for row, _ in runs] or list(failed)
        fill(found, trials, [*anchor_rows(), *(row for _, rows in runs for row in rows)])
    return found


def squeezed(text: str) -> str:
    """A text without spaces and line breaks: the terminal wraps lines, also inside of long names."""
    return re.sub(r"\s", "", text)


def test_the_page_and_the_terminal_say_the_same(board: Board):
    found = rank(board, "paper", floor=0.0)
    sentences = found.verdict.sentences()
    shown = regrade("board", "show", "--store", board.path.parent, "--floor", 0)
    page = render([found], generated="now")
    said = re.findall(r'<div class="verdict">(.*?)</div>', page, re.DOTALL)
    paragraphs = [html.unescape(text) for one in said for text in re.findall("<p>(.*?)</p>", one, re.DOTALL)]
    assert [squeezed(text) for text in paragraphs] == [
        squeezed(text.replace("\x1b", r"\x1b")) for text in [*sentences, *[RULE] * bool(sentences or said)]
    ]
    assert bool(said) is bool(found.verdict.ranked or found.verdict.provisional)
    for sentence in sentences:
        assert sentence.isprintable() and sentence[-1] in ".)"
        assert squeezed(sentence) in squeezed(shown.stdout)
        assert len(sentence) < 2500
    assert (squeezed(RULE) in squeezed(shown.stdout)) is bool(said)


def test_json_has_the_verdict_and_no_replicates(board: Board):
    found = rank(board, "paper", floor=0.0)
    text = regrade("board", "show", "--store", board.path.parent, "--floor", 0, "--json").stdout
    [ranking] = json.loads(text, parse_constant=pytest.fail)
    verdict = ranking["verdict"]
    assert verdict.keys() == {"ranked", "provisional", "leader", "first", "ties", "resolution", "labels"}
    assert (verdict["leader"], verdict["first"]) == (found.verdict.leader, found.verdict.first)
    assert verdict["ties"] == {one: list(others) for one, others in found.verdict.ties.items()}
    assert verdict["labels"] == {entry.entry: entry.label for entry in found.entries}
    if found.verdict.resolution:
        assert verdict["resolution"]["difference"] == found.verdict.resolution.difference
    entries = {entry["entry"]: entry for entry in ranking["entries"]}
    for entry in found.entries:
        shown = entries[entry.entry]
        assert "replicated" not in shown and "replicated" not in (shown["matched"] or {})
        assert (shown["rank"], shown["provisional"]) == (entry.rank, entry.provisional)
        assert shown["score"]["value"] == entry.score.value
        assert shown["score"]["interval"] == (entry.score.interval and list(entry.score.interval))
    assert longest(ranking) <= 30  # entries, attacks, runs; replicates would be thousands
    assert all(entry.reason or entry.provisional or entry.replicated for entry in found.entries)  # it was there


def longest(value: Any) -> int:
    """Length of the longest list in JSON."""
    if isinstance(value, dict):
        return max((longest(item) for item in value.values()), default=0)
    return max(len(value), *(longest(item) for item in value), 0) if isinstance(value, list) else 0


def ranking_of(name: str, tmp_path: Path) -> Ranking:
    board = Board(tmp_path / "board")
    fill(board, [row for row, _ in WORLDS[name]], [*anchor_rows(), *(row for _, of in WORLDS[name] for row in of)])
    return rank(board, "paper", floor=0.0)


def test_a_leader_is_named_with_those_it_is_better_than(tmp_path: Path):
    found = ranking_of("a leader", tmp_path)
    assert found.verdict.sentences()[0] == "one · npo leads: better than the other (Holm, 5 %)."
    assert found.verdict.ties == {}
    three = [*WORLDS["a leader"], *runs_of("c", 0.3, 0.2, 0.95, optimizer="three")]
    fill(Board(tmp_path / "three"), [row for row, _ in three], [*anchor_rows(), *(r for _, of in three for r in of)])
    found = rank(Board(tmp_path / "three"), "paper", floor=0.0)
    assert found.verdict.sentences()[0] == "one · npo leads: better than each of the 2 others (Holm, 5 %)."


def test_one_entry_leads_nobody(tmp_path: Path):
    found = ranking_of("one entry", tmp_path)
    assert (found.verdict.leader, found.verdict.first, found.verdict.resolution) == (None, "a", None)
    assert found.verdict.sentences() == []


def test_many_ties_are_counted_and_not_listed(tmp_path: Path):
    found = ranking_of("ties", tmp_path)
    leading, tied, resolution = found.verdict.sentences()
    assert leading.startswith("No entry leads: opt0 · npo has the highest score and cannot be told from opt1 · npo, ")
    assert re.search(r" and \d others\.$", leading) and leading.count(" · npo") == 1 + MOST_NAMED
    assert tied.startswith("Cannot be told apart: opt1 · npo from ") and tied.count(" from ") == MOST_TIES + 1
    assert tied.endswith(f"and {8 - 1 - MOST_TIES} others from some.")
    assert resolution.startswith("Resolution: differences of 0.") and " and 3 runs; 0.05 would take " in resolution
    # Who is told from whom is what the ranks say.
    for entry in found.entries:
        better = [one for one, others in found.verdict.ties.items() if entry.entry in others]
        assert entry.rank == max(1 + found.entries.index(entry) - len(better), 1)
