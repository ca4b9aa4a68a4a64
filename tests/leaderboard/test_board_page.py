"""The page: one file that needs nothing else, says all of the ranking, and lets nobody's row run a script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from leaderboard.page import render, text
from leaderboard.page.picture import picture, strip
from leaderboard.page.placing import Box, place
from leaderboard.page.scale import UtilityScale
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.number import Number
from leaderboard.ranking.rank import Ranking, rank
from tests.support.board_rows import ANCHOR_IDS, entry_rows, schema_tables, showcase, tables, wide_showcase

VOID = {"meta", "link", "input", "br", "img", "hr"}
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed where it belongs, and ids are given once."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.open[-1:] == ["script"]:
            self.scripts[-1].append(data)

    def programs(self) -> list[dict[str, str | None]]:
        """The scripts that a browser runs; data in JSON is none, and it is JSON."""
        scripts = self.all("script")
        kinds = [script.get("type") for script in scripts]
        assert set(kinds) <= {None, "application/json"}
        for kind, parts in zip(kinds, self.scripts, strict=True):
            if kind:
                json.loads("".join(parts))
        return [script for script, kind in zip(scripts, kinds, strict=True) if not kind]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return rank(schema_tables(*showcase()), "paper")


@pytest.fixture(scope="module")
def page(ranking: Ranking) -> str:
    return render([ranking], generated="2026-10-01 12:00 UTC")


@pytest.fixture(scope="module")
def wide() -> Ranking:
    """Ten attacks and `none`, two of them curves; numbers at matched utility; an attack that failed."""
    return rank(schema_tables(*wide_showcase()), "wide")


def cells(page: str, entry: Entry) -> list[tuple[str, str]]:
    """The attributes and the text of each cell of an entry's row, in order."""
    [row] = re.findall(rf'<tr id="[^"]*-{re.escape(entry.entry)}".*?</tr>', page, re.DOTALL)
    found = re.findall(r"<(?:td|th)\b([^>]*)>(.*?)</(?:td|th)>", row, re.DOTALL)
    return [(attributes, " ".join(re.sub("<[^>]*>", " ", inside).split())) for attributes, inside in found]


def test_the_page_is_well_formed_and_whole(page: str, ranking: Ranking):
    reader = Reader(page)
    shown = " ".join(text for tag, text in reader.texts if tag not in ("style", "script"))
    for entry in ranking.entries:
        assert entry.label in shown
        assert entry.reason is None or entry.reason in shown
    for words in ("2026-10-01 12:00 UTC", ranking.attack_set, *ranking.attacks, "another", "test split"):
        assert words in shown
    rows = [row for row in reader.all("tr") if "data-entry" in row]
    assert [row["data-entry"] for row in rows] == [entry.entry for entry in ranking.entries]


@pytest.mark.parametrize("which", ["ranking", "wide"])
def test_every_row_of_the_table_has_a_cell_per_column(which: str, request: pytest.FixtureRequest):
    page = render([request.getfixturevalue(which)], generated="now")
    body = page[page.index("<thead>") : page.index("</table>")]
    widths = set()
    for row in re.findall(r"<tr\b.*?</tr>", body, re.DOTALL):
        cells = re.findall(r"<(?:td|th)\b([^>]*)>", row)
        widths.add(sum(int(found[1]) if (found := re.search(r'colspan="(\d+)"', cell)) else 1 for cell in cells))
    assert len(widths) == 1


def test_many_attacks_have_short_heads_and_full_names_to_point_at(wide: Ranking):
    page = render([wide], generated="now")
    Reader(page)
    head = page[page.index("<thead>") : page.index("</thead>")]
    for attack, label in wide.attack_labels.items():
        assert re.search(rf'title="{re.escape(attack)}"><span class="sort">{re.escape(label)}</span>', head)
    entry = wide.entries[0]
    for attack in wide.attacks:
        [(attributes, shown)] = [cell for cell in cells(page, entry) if f'title="{attack}: ' in cell[0]]
        assert shown.startswith(text.share(entry.recovery[attack].value))
        area = entry.areas.get(attack)
        assert ("∫" in shown) is (area is not None)
        if area:
            assert shown.endswith(text.share(area.value)) and text.full(area) in attributes


def test_headlines_at_matched_utility_stand_beside_the_others(wide: Ranking, page: str):
    shown = render([wide], generated="now")
    for entry in wide.entries:
        [(attributes, cell_text)] = [cell for cell in cells(shown, entry) if "number matched" in cell[0]]
        assert cell_text.startswith(text.share(entry.matched.score.value))
        title = re.search('title="(.*?)"', attributes, re.DOTALL)[1]
        assert f"share of the unlearned weights {text.full(entry.matched.mixing_weight)}" in title
        for name, number in (("F", entry.matched.forgetting), ("R", entry.matched.robustness)):
            assert f"\n{name} {text.full(number)}" in title
    assert 'class="number matched"' not in page and "Matched" not in page
    with pytest.raises(ValueError, match="rank with matched=False"):
        render([rank(schema_tables(*wide_showcase()), "wide", matched=True)], generated="now")


def test_an_attack_that_failed_is_told_in_its_cell_and_under_its_entry(wide: Ranking):
    [entry] = [entry for entry in wide.entries if entry.failed]
    [(attack, why)] = entry.failed.items()
    found = cells(render([wide], generated="now"), entry)
    assert [shown for attributes, shown in found if f'title="{attack} {why}"' in attributes] == ["failed"]
    assert any("OutOfMemoryError: no memory" in shown for attributes, shown in found if 'scope="row"' in attributes)


def test_where_chance_is_the_zero_the_page_says_chance():
    trial, rows = entry_rows("a", 0.9, 0.8, 0.95, anchor_ids="target:chance")
    ranking = rank(tables((trial, rows)), "paper")
    page = render([ranking], generated="now")
    assert "chance: knows none of it" in page and "(target : chance)" in page
    assert "beyond chance where there is none" in page
    assert "retrained: forgot everything" not in page
    usual = render([rank(tables(entry_rows("a", 0.9, 0.8, 0.95)), "paper")], generated="now")
    assert ANCHOR_IDS == "target:retrained" and "retrained: forgot everything" in usual and "knows none" not in usual


def test_nothing_is_loaded_from_elsewhere(page: str):
    assert not re.search(r"https?://|@import|url\(|//[a-z]+\.[a-z]+/", page)
    reader = Reader(page)
    for tag, attributes in reader.elements:
        assert tag not in ("iframe", "img", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    [policy] = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_rows_of_others_cannot_run_a_script(page: str):
    names = ("optimizer", "objective", "smoothing", "grade")
    trial, rows = entry_rows(EVIL, 0.9, 0.8, 0.95, **dict.fromkeys(names, EVIL), anchor_ids=EVIL, data=EVIL)
    failed = entry_rows(EVIL + "2", 0.9, 0.8, 0.95, status="failed", reason=EVIL, anchor_ids=EVIL, data=EVIL)[0]
    evil = rank(tables((trial, rows), (failed, [])), "paper")
    shown = render([evil], title=EVIL, generated=EVIL)
    assert EVIL not in shown and "&lt;script&gt;alert(1)" in shown
    reader, clean = Reader(shown), Reader(page)
    assert len(reader.programs()) == len(clean.programs()) == 1
    assert len(reader.all("script")) <= 2  # and the numbers to compare, which are data
    assert not reader.all("img")
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert {entry.entry for entry in evil.entries} == {EVIL, EVIL + "2"}


def test_the_table_can_be_read_aloud(page: str):
    reader = Reader(page)
    assert len(reader.all("caption")) == len(reader.all("table")) == 2  # entries, and two of them compared
    assert all(cell.get("scope") in ("row", "col", "colgroup", "rowgroup") for cell in reader.all("th"))
    [drawn] = [svg for svg in reader.all("svg") if svg.get("role") == "img"]
    ids = {attributes.get("id") for _, attributes in reader.elements}
    assert set(drawn["aria-labelledby"].split()) <= ids
    assert all(svg.get("aria-hidden") == "true" for svg in reader.all("svg") if svg is not drawn)


def test_two_boards_and_an_empty_one_share_a_page(ranking: Ranking):
    reader = Reader(render([ranking, ranking, rank(tables(), "paper")], generated="now"))
    assert sum("Entries of paper" in text for tag, text in reader.texts) == 2
    assert any("No trial of this task" in text for _, text in reader.texts)
    Reader(render([], generated="now"))


def test_the_picture_stands_to_scale(ranking: Ranking):
    drawn = picture(ranking)
    marks = {mark.entry.entry: mark for mark in drawn.marks}
    assert marks.keys() == {entry.entry for entry in ranking.entries if entry.reason is None}
    assert {mark.entry.rank is None for mark in marks.values()} == {True, False}  # provisional ones too
    up = (drawn.target[1] - drawn.retrained[1], drawn.target[1])
    for mark in marks.values():
        assert mark.before == pytest.approx(up[1] - up[0] * mark.entry.forgetting.value)
        assert mark.after == pytest.approx(up[1] - up[0] * mark.entry.robustness.value)
        assert drawn.area.left <= mark.x <= drawn.area.right
        assert (mark.x < drawn.floor) is mark.entry.below_floor
    by_utility = sorted(marks.values(), key=lambda mark: mark.entry.utility.value)
    assert by_utility == sorted(marks.values(), key=lambda mark: mark.x)
    small = strip(ranking.entries[0])
    assert small.after < small.before


def test_labels_cover_neither_each_other_nor_a_mark(ranking: Ranking):
    drawn = picture(ranking)
    boxes = [mark.label.box for mark in drawn.marks if mark.label]
    assert len(boxes) > 5
    for index, box in enumerate(boxes):
        assert box.within(drawn.area)
        assert all(box.common(other) == 0 for other in boxes[:index])
        assert all(box.common(Box.around(mark.x, mark.after, 4)) == 0 for mark in drawn.marks)


def test_a_label_without_a_free_place_is_left_out():
    area = Box(0, 0, 200, 100)
    placed = place({"a": ("first", 100, 50), "b": ("second", 100, 50)}, area, [Box(90, 0, 110, 100)], [])
    assert placed.keys() == {"a", "b"} and placed["a"].box.common(placed["b"].box) == 0
    assert place({"a": ("first", 100, 50)}, area, [area], []) == {}


@pytest.mark.parametrize(
    ("floor", "utilities"), [(0.9, [0.2, 0.95]), (0.9, [0.99]), (0.0, [0.3]), (1.0, [1.0, 0.4]), (0.5, [])]
)
def test_the_utility_axis_rises_and_has_room_for_everyone(floor: float, utilities: list[float]):
    scale = UtilityScale.over(utilities, floor, 60.0, 900.0)
    points = [scale(utility) for utility in sorted({*utilities, floor, 1.0})]
    assert points == sorted(set(points)) and points[0] >= 60.0 and points[-1] <= 900.0
    ticks = list(scale.ticks())
    assert max(ticks) == pytest.approx(1.0) and len(ticks) <= 11
    # From the floor on, equal steps of utility are equal steps on the page.
    thirds = [scale(floor + (1 - floor) * k / 3) for k in range(4)]
    assert thirds[1] - thirds[0] == pytest.approx(thirds[3] - thirds[2])


def test_numbers_are_short():
    shares = [text.share(value) for value in (0.874, -0.001, -0.126, 1, None)]
    assert shares == ["0.87", "0.00", "\N{MINUS SIGN}0.13", "1.00", "\N{EN DASH}"]
    assert [text.count(v) for v in (0, 60, 999, 1234, 3_400_000)] == ["0", "60", "999", "1.23k", "3.4M"]
    assert [text.seconds(v) for v in (3.21, 246, 7200)] == ["3.2 s", "4.1 min", "2.0 h"]
    number = Number(0.5, (0.38, 0.621), 0.52, (0.4, 0.6))
    assert text.full(number) == "0.50, 95 % interval 0.38 to 0.62, runs 0.40, 0.60, plain 0.52"
    assert text.full(Number(0.5, None, 0.5, (0.5,))) == "0.50"
    assert text.full(Number(None, reason="not measured")) == "not measured"
    assert text.interval(number) == "0.38 to 0.62" and text.interval(Number(0.5)) == ""
    assert text.interval(Number(-0.1, (-0.2, 0.0))) == "\N{MINUS SIGN}0.20 to 0.00"
    assert text.seeds(number) == "0.40, 0.60" and text.seeds(Number(0.5, None, 0.5, (0.5,))) == ""
    assert (text.short("relearn[lr=0.1,steps=2]"), text.settings("relearn[lr=0.1,steps=2]")) == (
        "relearn",
        "lr=0.1, steps=2",
    )
    assert (text.short("none"), text.settings("none")) == ("none", "")


CLICKS = """<script>
const heading = [...document.querySelectorAll("thead th")].find((th) => th.textContent.trim() === "U");
heading.querySelector("button").click();
const box = document.querySelector(".grades input[value=first]");
box.checked = false;
box.dispatchEvent(new Event("change"));
const order = [...document.querySelectorAll("tbody tr[data-entry]:not([hidden])")].map((row) => row.dataset.entry);
document.title = [heading.getAttribute("aria-sort"), ...order].join(" ");
</script>"""


@pytest.mark.browser
def test_columns_sort_and_grades_hide_in_a_browser(page: str, ranking: Ranking, tmp_path: Path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    file = tmp_path / "board.html"
    file.write_text(page.replace("</body>", f"{CLICKS}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    found = subprocess.run([chromium, *options, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    direction, *order = re.search("<title>(.*?)</title>", found.stdout).group(1).split()
    kept = [entry for entry in ranking.entries if entry.grade != "first"]
    parts = [[e for e in kept if e.rank and not e.below_floor], [e for e in kept if e.rank and e.below_floor]]
    parts.append([e for e in kept if e.provisional])
    wanted = [e.entry for part in parts for e in sorted(part, key=lambda e: e.utility.value, reverse=True)]
    assert direction == "descending"
    assert order[: len(wanted)] == wanted
    assert sorted(order[len(wanted) :]) == sorted(e.entry for e in kept if e.reason)
