"""Text of a board that reaches a terminal or a page: what it could do there is written out instead."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.board.visible import LONGEST, shortened, visible
from tests.leaderboard.test_board_page import Reader
from tests.support.board_rows import ENGINE
from tests.support.command import regrade
from tests.support.hostile_board import bad_entry, good_board, put

pytestmark = pytest.mark.filterwarnings("error")

EVIL = {
    "escapes": "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\x00",
    "directions": "\u202enpa\u2066.\u2069\u200f",
    "lines": "a\nregrade: all is well\r\u2028\u2029\x85",
    "markup": "[bold red]a[/] [/nothing] [link=x]",
    "HTML": '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>]]>-->',
    "formula": "$\\frac{1}{$ _x ^y \\undefined",
    "underscore": "_hidden",
    "scripts": "名 😀 \U00010ffff \u0301\u0301",
    "templates": "{{ 7 * 7 }}{% raw %}${x}%s{0}",
    "table": "a | b |\n| --- |",
    "long": "x" * 60_000,
}

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


@given(st.text(st.characters(), max_size=30))
def test_what_is_visible_has_no_control_left_and_the_rest_unchanged(text: str):
    shown = visible(text)
    assert not CONTROLS.search(shown)
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_long_texts_keep_their_ends():
    assert shortened("a" * LONGEST) == "a" * LONGEST
    cut = shortened("a" + "x" * 10_000 + "b", 50)
    assert (len(cut), cut[0], cut[-1], "..." in cut) == (49, "a", "b", True)
    assert shortened("\x1b[2J") == "\\x1b[2J" and visible("a\nb\t", keep="\n") == "a\nb\\t"


@pytest.mark.parametrize("kind", EVIL)
def test_names_of_a_row_do_nothing_where_they_are_shown(tmp_path: Path, kind: str):
    evil = EVIL[kind]
    good_board(tmp_path)
    names = dict.fromkeys(("objective", "smoothing", "grade", "spec"), evil)
    for number, status in enumerate(("ok", "diverged", "failed", "ok", "ok")):
        row, rows = bad_entry(**names, optimizer=f"{evil}{number}", entry=f"{evil}{number}", status=status, reason=evil)
        trial = f"{evil}{number}"
        row |= {"trial": trial, "data": evil if number == 3 else row["data"]}  # in another group
        put(tmp_path, "trials", [row], f"bad{number}")
        rows = [one | {"trial": trial, "engine": evil if number == 4 else ENGINE} for one in rows]
        rows[1] |= {"value": None, "status": "failed", "reason": evil} if number == 0 else {}
        put(tmp_path, "measurements", rows, f"bad{number}")
    shown = regrade("board", "show", "--store", tmp_path)
    reported = regrade("report", tmp_path, "--markdown")
    assert shown.stderr == reported.stderr == ""
    for text in (shown.stdout, reported.stdout):
        assert not CONTROLS.search(text.replace("\n", ""))
        assert "regrade: all" not in [line[:12] for line in text.split("\n")]
        assert len(text) < 60_000 or text is reported.stdout
    if kind == "markup":
        assert "[bold red]" in shown.stdout
    [ranking] = json.loads(regrade("board", "show", "--store", tmp_path, "--json").stdout)
    found = {entry["optimizer"] for entry in ranking["entries"]}
    assert found == {"adamw", *(f"{evil}{number}" for number in range(3))}
    assert {group["data"] for group in ranking["left_out"]} == {evil, "data"}
    assert list(ranking["left_out_by_engine"]) == [evil]

    regrade("board", "page", "--store", tmp_path)
    page = Reader((tmp_path / "board.html").read_text())
    assert len(page.programs()) == 1 and not page.all("img")
    assert not any(
        CONTROLS.search(text.replace("\n", "")) for tag, text in page.texts if tag not in ("script", "style")
    )

    plots = json.loads(regrade("report", tmp_path, "--json").stdout)[0]["plots"]
    assert len(plots) == 2
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag.endswith("svg")
