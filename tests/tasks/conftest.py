"""A TOFU mirror in the published layout and at its full size, with invented text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Tables = dict[str, list[dict[str, Any]]]


def tofu_tables(percents: Iterable[int] = (1, 5, 10)) -> Tables:
    """Tables with their published number of rows: forgetXX are the last rows of all, retainXX the rest."""

    def facts(about: str, count: int) -> list[dict[str, Any]]:
        return [{"question": f"What of {about} {i}?", "answer": f"It is {about} {i}, truly."} for i in range(count)]

    def perturbed(rows: list[dict[str, Any]], wrong: int, paraphrased: bool) -> list[dict[str, Any]]:
        more = [{"paraphrased_answer": f"Truly, {row['answer']}"} if paraphrased else {} for row in rows]
        return [
            {**row, **extra, "perturbed_answer": [f"Not {row['answer']} ({i})" for i in range(wrong)]}
            for row, extra in zip(rows, more, strict=True)
        ]

    full = facts("author", 4000)
    tables: Tables = {
        "retain_perturbed": perturbed(full[:400], 5, paraphrased=True),
        "real_authors_perturbed": perturbed(facts("poet", 100), 3, paraphrased=False),
        "world_facts_perturbed": perturbed(facts("capital", 117), 3, paraphrased=False),
    }
    for percent in percents:
        size = 40 * percent
        tables[f"forget{percent:02}"] = full[-size:]
        tables[f"retain{100 - percent}"] = full[:-size]
        tables[f"holdout{percent:02}"] = facts("stranger", size)
        tables[f"forget{percent:02}_perturbed"] = perturbed(full[-size:], 5, paraphrased=True)
    return tables


def write_mirror(root: Path, form: str, tables: Tables) -> Path:
    """Write the tables under `root`/tofu: as published (json), as jsonl, as parquet, or as the hub's folders."""
    folder = root / "tofu"
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        elif form == "folders":
            half = len(rows) // 2
            for part, some in enumerate((rows[:half], rows[half:])):
                file = folder / name / "train" / f"{part:04}.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(some), file)
        elif form == "json" and name.startswith("holdout"):
            (folder / f"{name}.json").write_text(json.dumps(rows))
        else:
            (folder / f"{name}.{form}").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def tofu_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for REGRADE_DATA, in the published layout."""
    return write_mirror(tmp_path_factory.mktemp("mirror"), "json", tofu_tables())


@pytest.fixture
def write_tofu(tmp_path: Path) -> Callable[..., Path]:
    """Writes a mirror of forget01 into the test's own folder: `write_tofu(form)`, with changed tables by name."""

    def write(form: str = "json", **changed: list[dict[str, Any]]) -> Path:
        return write_mirror(tmp_path / form, form, {**tofu_tables([1]), **changed})

    return write
