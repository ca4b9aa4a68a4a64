"""Two entries compared inside the page: the numbers that `regrade board compare` gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from leaderboard import page
from leaderboard.page import render
from leaderboard.page.comparing import NUMBERS, comparable
from leaderboard.ranking.comparison import compared
from leaderboard.ranking.comparison.difference import Runs, p_value
from leaderboard.ranking.rank import Ranking, rank
from tests.support.board_rows import anchor_rows, entry_rows, item_rows, schema_tables, with_samples

# Runs of `a` and `b` share their seeds; `c` has others.
RUNS = {
    "a": {1: (0.9, 0.8, 0.95), 2: (0.85, 0.7, 0.97), 3: (0.95, 0.75, 0.93)},
    "b": {1: (0.7, 0.5, 0.95), 2: (0.6, 0.45, 0.96), 3: (0.72, 0.55, 0.91)},
    "c": {4: (0.8, 0.6, 0.94), 5: (0.9, 0.7, 0.99), 6: (0.7, 0.6, 0.96), 7: (0.75, 0.55, 0.9)},
}
PICKED = """<script>
const found = [];
for (const [a, b] of [[0, 1], [0, 2], [2, 1]]) {
  const [one, other] = document.querySelectorAll(".compare select");
  one.value = a; other.value = b;
  other.dispatchEvent(new Event("change"));
  found.push([...document.querySelectorAll(".compare tbody tr")].map((row) => row.dataset.p).join(" "));
}
document.title = found.join(" | ") + " | " + document.querySelector(".compare .said").textContent;
</script>"""


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    entries = [entry_rows(name, *shares, seed) for name, runs in RUNS.items() for seed, shares in runs.items()]
    measured = [with_samples(row) for row in (*anchor_rows(), *(row for _, rows in entries for row in rows))]
    tables = schema_tables([row for row, _ in entries], measured)
    from leaderboard.board import schema

    return rank(tables | {"items": schema.to_arrow("items", item_rows(measured, noise=0.25))}, "paper", floor=0.5)


def test_the_page_has_what_comparing_takes_and_no_more(ranking: Ranking):
    data = comparable(ranking)
    assert sorted(data["names"]) == sorted(entry.label for entry in ranking.entries)
    assert [number["label"] for number in data["numbers"]] == list(NUMBERS.values())
    for number in data["numbers"]:
        assert [len(row) for row in number["covariance"]] == [1, 2, 3]
    assert comparable(rank(schema_tables([], []), "paper")) is None


@pytest.mark.browser
def test_the_browser_finds_the_p_values_of_the_command(ranking: Ranking, tmp_path: Path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    file = tmp_path / "board.html"
    file.write_text(render([ranking], generated="now").replace("</body>", f"{PICKED}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    found = subprocess.run([chromium, *options, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    *pairs, said = re.search("<title>(.*?)</title>", found.stdout).group(1).split(" | ")
    entries = ranking.entries
    for (one, other), values in zip(((0, 1), (0, 2), (2, 1)), pairs, strict=True):
        for name, p in zip(NUMBERS, values.split(), strict=True):
            sides = entries[one].replicated[name], entries[other].replicated[name]
            wanted = compared(*sides, (entries[one].entry, entries[other].entry)).p
            assert float(p) == pytest.approx(wanted, rel=0.02, abs=1e-6), (one, other, name)
    assert said.startswith(f"{entries[2].label} against {entries[1].label}: ")


def test_the_page_s_tail_of_many_draws_is_the_command_s():
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node here")
    cases = [
        (0.3, 0.1, [(0.2, 2), (0.1, 1), (0.05, 4)]),
        (2.0, 0.0, [(0.1, 2), (0.1, 2), (0.1, 4)]),
        (0.3, 0.3, [(0.1, 2), (0.1, 2), (0.1, 1), (0.1, 1), (0.05, 9), (0.03, 2)]),
    ]
    functions = (Path(page.__file__).parent / "compare.js").read_text().partition("for (const box of")[0]
    draws = [json.dumps([{"scale": scale, "df": df} for scale, df in drawn]) for _, _, drawn in cases]
    asked = [f"tail({size}, {error}, {of})" for (size, error, _), of in zip(cases, draws, strict=True)]
    script = f"{functions}\nconsole.log(JSON.stringify([{', '.join(asked)}]));"
    found = json.loads(subprocess.run([node, "-e", script], capture_output=True, text=True, check=True).stdout)
    assert found == [
        pytest.approx(p_value(size, error, [Runs(*one) for one in drawn]), rel=2e-3) for size, error, drawn in cases
    ]


def test_the_page_has_the_seeds_of_levels_where_there_are_any(ranking: Ranking):
    first, *others = ranking.entries
    levels = {"attack seeds": {"attack seed 0": 0.25, "attack seed 1": 0.5}}
    replicated = {name: replace(one, levels=levels) for name, one in first.replicated.items()}
    entries = (replace(first, replicated=replicated), *others)
    numbers = comparable(replace(ranking, entries=entries))["numbers"]
    assert [number["levels"] for number in numbers] == [[levels, {}, {}]] * len(NUMBERS)
    assert all("levels" not in number for number in comparable(ranking)["numbers"])
