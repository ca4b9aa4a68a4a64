"""Reading a board of many small files before and after compaction, beside one file of the same rows.

    python benchmarks/compacting.py [--files N] [--repeats N] [--json FILE]

Each file has one trial with its settings, as a sweep writes them. Every reading is by a `Board` in a fresh process and
times all that a program waits for once its modules are loaded: listing, checking and reading. The last two kinds of
board are read in turn, so that other load on the machine affects both alike. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import schema
from leaderboard.board.files import how_to_write
from leaderboard.board.store import Board


def row(number: int) -> dict[str, Any]:
    """A trial as a sweep leaves it."""
    settings = {"lr": 1e-4 * (1 + number % 7), "betas": [0.9, 0.999]}
    spec = {"seed": number, "optimizer": {"name": "adam", **settings}, "steps": 60, "notes": "x" * 500}
    return {
        "trial": f"{number:064x}",
        "entry": f"{number // 3:064x}",
        "status": "ok",
        "task": "pocket",
        "task_version": 1,
        "model": "pocket-tiny",
        "seed": number % 3,
        "spec": json.dumps(spec),
        "anchors": "a" * 64,
        "anchor_ids": "target:retrained",
        "steps": 60,
        "unlearn_seconds": number / 7,
        "written_at": f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z",
    }


def write_small(folder: Path, files: int) -> None:
    """The files themselves, without the waiting for the disk that makes `Board.append` safe."""
    (folder / "trials").mkdir(parents=True)
    for number in range(files):
        content = schema.to_arrow("trials", [row(number)])
        pq.write_table(content, folder / "trials" / f"{number:08}.parquet", **how_to_write(content.schema))


def write_one(folder: Path, files: int) -> None:
    Board(folder).append("trials", [row(number) for number in range(files)])


def read(folder: Path) -> float:
    """Seconds of reading, after a first reading of an empty board, which loads what is loaded once."""
    Board(folder / "nowhere").read("trials")
    started = time.perf_counter()
    Board(folder).read("trials")
    return time.perf_counter() - started


def rows(folder: Path) -> pa.Table:
    return Board(folder).read("trials")


def compact(folder: Path) -> float:
    started = time.perf_counter()
    [trials, *_] = Board(folder).compact()
    assert trials.after == 1
    return time.perf_counter() - started


def apart(task: Any, *args: Any) -> Any:
    """A task's result, from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        many, one = Path(name) / "many", Path(name) / "one"
        apart(write_small, many, args.files)
        apart(write_one, one, args.files)
        before = apart(read, many)
        compacting = apart(compact, many)
        pairs = [(apart(read, many), apart(read, one)) for _ in range(args.repeats)]
        assert apart(rows, many).equals(apart(rows, one))
    single = statistics.median(alone for _, alone in pairs)
    figures = {
        "files": args.files,
        "before_s": before,
        "after_s": statistics.median(after for after, _ in pairs),
        "one_file_s": single,
        "compacting_s": compacting,
        "before_over_one": before / single,
        "after_over_one": statistics.median(after / alone for after, alone in pairs),
        "compacting_over_before": compacting / before,
    }
    for name, value in figures.items():
        print(f"{name:>22} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
