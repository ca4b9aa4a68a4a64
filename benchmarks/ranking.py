"""Benchmark of the board: comparing entries beside one matrix product, and `show` beside DuckDB reading the same files.

    python benchmarks/ranking.py [--entries N] [--measurements N ...] [--repeats N] [--json FILE]

*Comparing* goes from the answers of 1,000 entries to 300 questions under 10 attacks to their intervals, ranks and
leader, with 2,000 replicates; the product is of the replicates' weights and all answers. *Boards* are made up: trials
with three seeds an entry, under the official attacks of `pocket`, on both splits, with seven probes and five metrics
each, in files of 100 trials. Each reading is in a fresh process. Seconds are the processor's. Nothing here imports
torch.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import schema
from leaderboard.board.store import Board
from leaderboard.ranking.comparison import (
    REPLICATES,
    Cell,
    Cells,
    Replicated,
    Resampling,
    Units,
    Verdicts,
    replicate,
    spread,
)
from leaderboard.ranking.rank import rank
from tasks import TASKS, Split, attack_name

TASK = "pocket"
SEEDS = 3
ATTACKS = 10
NUMBERS = ("forgetting", "robustness", "robustness_harmonic", "utility", "score")
KNOWLEDGE = ("forget_qa", "forget_choice", "forget_text")
UTILITY = ("retain_qa", "retain_choice", "retain_text", "reasoning")
METRICS = ("probability", "rouge", "accuracy", "exact", "truth")
ITEMS = 20
"""Questions of a headline on the boards: a list of them for each of its rows in the table `items`."""
TRIALS_PER_FILE = 100


def compared(entries: int, probes: int, runs: int) -> tuple[float, float]:
    """Processor seconds of comparing entries with 300 questions in all, and of one matrix product of that size."""
    rng = np.random.default_rng(0)
    items = 300 // probes
    names = [f"q{number}" for number in range(items)]
    draws = [Resampling.of(f"probe {probe}", names) for probe in range(probes)]
    units = Units.of([(one, rng.normal(0.8, 0.1, items)) for one in draws])
    useful = Units.of([(draws[0], rng.normal(0.8, 0.1, items))])
    attacks = ["none", *(f"attack {number}" for number in range(1, ATTACKS))]
    answers = rng.normal(0.3, 0.3, (entries, runs, ATTACKS, probes, items))
    kept = rng.normal(0.75, 0.2, (entries, runs, items))

    def ours() -> None:
        scores = {}
        for entry in range(entries):
            found = [
                replicate(
                    Cells.of(
                        units,
                        {
                            Cell(attack, 0, probe): answers[entry, run, place, probe]
                            for place, attack in enumerate(attacks)
                            for probe in range(probes)
                        },
                    ),
                    Cells.of(useful, {Cell("none", 0, 0): kept[entry, run]}),
                )
                for run in range(runs)
            ]
            # Runs that a board would have: without them there is nothing to compare by.
            noise = rng.normal(0, 0.02, max(runs, SEEDS))
            numbers = {}
            for name in (*NUMBERS, *attacks):
                arrays = [one.recovery[name] if name in attacks else getattr(one, name) for one in found]
                mean = np.mean(arrays, axis=0)
                numbers[name] = Replicated(mean, {f"seed {i}": float(mean[0] + x) for i, x in enumerate(noise)})
                spread(numbers[name], f"entry {entry}")
            scores[f"entry {entry}"] = numbers["score"]
        verdicts = Verdicts.of(scores)
        verdicts.ranks()
        verdicts.leader()

    columns = rng.normal(size=(300, entries * runs * ATTACKS))
    weights = np.ascontiguousarray(np.concatenate([one.weights for one in draws])[:300].T)[:REPLICATES]
    return _seconds(ours), min(_seconds(lambda: weights @ columns) for _ in range(3))


def board(folder: Path, measurements: int, *, items: bool) -> int:
    """Write a board with about so many measurements, and return the number of its trials."""
    rng = np.random.default_rng(0)
    attacks = [attack_name(settings) for settings in TASKS[TASK].attack_sets[TASKS[TASK].official][Split.TEST]]
    places = [(attack, point) for attack in attacks for point in ((8, 16, 24) if "points" in attack else (0,))]
    probes = (*KNOWLEDGE, *UTILITY)
    asked = [
        (attack, point, probe, split, metric)
        for split in ("dev", "test")
        for attack, point in places
        for probe in probes
        for metric in METRICS
    ]
    trials = max(SEEDS, round(measurements / len(asked)))
    for table in ("trials", "measurements", *(["items"] if items else [])):
        (folder / table).mkdir(parents=True, exist_ok=True)
    _written(folder, "anchors", [("anchors", "target", None), ("anchors", "retrained", None)], asked, items, rng)
    for start in range(0, trials, TRIALS_PER_FILE):
        some = range(start, min(trials, start + TRIALS_PER_FILE))
        models = [(f"{number:064x}", "unlearned", 0.15 + 0.6 * ((number // SEEDS) % 97) / 97) for number in some]
        rows = [_trial(number) for number in some]
        pq.write_table(schema.to_arrow("trials", rows), folder / "trials" / f"{start:06}.parquet")
        _written(folder, f"{start:06}", models, asked, items, rng)
    return trials


def _trial(number: int) -> dict[str, Any]:
    entry = number // SEEDS
    return {
        "trial": f"{number:064x}", "entry": f"{entry + (1 << 200):064x}", "status": "ok", "task": TASK,
        "task_version": 1, "data": "data", "model": "tiny", "template": "bare", "objective": "npo",
        "smoothing": "none", "optimizer": ("adamw", "sgd", "sophia", "hybrid")[entry % 4], "grade": "first",
        "zo_ratio": 0.0, "steps": 60 + entry, "steps_done": 60 + entry, "seed": number % SEEDS,
        "spec": json.dumps({"objective": {"beta": entry}, "seed": number % SEEDS}), "anchors": "anchors",
        "anchor_ids": "target:retrained", "value_calls": 0, "gradient_calls": 60, "directional_calls": 0,
        "curvature_calls": 0, "tokens": 10_000, "unlearn_seconds": 3.0, "written_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def _written(
    folder: Path,
    name: str,
    models: list[tuple[str, str, float | None]],
    asked: list[tuple[str, int, str, str, str]],
    items: bool,
    rng: np.random.Generator,
) -> None:
    """Write the measurements of some models as one file, and the items of their headlines as another."""
    n, size = len(asked), len(asked) * len(models)
    columns = {
        key: list(values)
        for key, values in zip(("attack", "point", "probe", "split", "metric"), zip(*asked, strict=True), strict=True)
    }
    known = np.array([probe in KNOWLEDGE for probe in columns["probe"]])
    attacked = np.array([attack != "none" for attack in columns["attack"]])
    base = {"target": np.full(n, 0.9), "retrained": 0.1 + 0.1 * (attacked & known)}
    base["retrained"][~known] = 0.85
    values = np.concatenate(
        [
            base[subject] if level is None else np.where(known, 0.1 + 0.8 * level * (1 + 0.2 * attacked), 0.88)
            for _, subject, level in models
        ]
    ) + rng.normal(0, 0.01, size)
    first = np.array([metric == METRICS[0] for metric in columns["metric"]])
    headline = [
        ("knowledge" if k else "utility") if f and (k or not a) else None
        for k, f, a in zip(known, first, attacked, strict=True)
    ]
    samples = [
        f"{trial[-20:]}-{subject}-{attack}-{point}-{split}"
        for trial, subject, _ in models
        for attack, point, _, split, _ in asked
    ]
    repeated = {key: pa.array(list(column) * len(models)) for key, column in columns.items()}
    constant = {
        "matching": "raw", "engine": "transformers/float32", "direction": "up", "status": "ok", "task": TASK,
        "data": "data", "anchors": "anchors", "anchor_ids": "target:retrained", "engine_version": "5",
        "dtype": "float32", "written_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    written = {
        **repeated,
        **{key: pa.repeat(value, size) for key, value in constant.items()},
        "trial": pa.array([trial for trial, _, _ in models for _ in range(n)]),
        "subject": pa.array([subject for _, subject, _ in models for _ in range(n)]),
        "subset": pa.array(["forget" if k else "retain" for k in known] * len(models)),
        "value": pa.array(values),
        "stderr": pa.repeat(0.02, size),
        "n": pa.repeat(ITEMS, size),
        "headline": pa.array(headline * len(models)),
        "chance": pa.repeat(0.0, size),
        "task_version": pa.repeat(1, size),
        "samples": pa.array(samples),
    }
    kind = schema.TABLES["measurements"]
    arrays = [
        written[field.name].cast(field.type) if field.name in written else pa.nulls(size, field.type) for field in kind
    ]
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=kind), folder / "measurements" / f"{name}.parquet", compression="zstd"
    )
    if items:
        scored = [place for place in range(size) if headline[place % n]]
        noise = rng.normal(0, 0.2, (len(scored), ITEMS))
        answers = values[scored][:, None] + noise - noise.mean(1, keepdims=True)  # their mean is the measurement
        ends = pa.array(np.arange(len(scored) + 1, dtype=np.int32) * ITEMS)
        names = pa.array([f"q{number:04}" for number in range(ITEMS)] * len(scored))
        rows = [
            pa.array([samples[place] for place in scored]),
            pa.array([columns["probe"][place % n] for place in scored]),
            pa.array([columns["metric"][place % n] for place in scored]),
            pa.ListArray.from_arrays(ends, names),
            pa.ListArray.from_arrays(ends, pa.array(answers.ravel())),
        ]
        table = pa.Table.from_arrays(rows, names=schema.TABLES["items"].names).cast(schema.TABLES["items"])
        pq.write_table(table, folder / "items" / f"{name}.parquet", compression="zstd")


def shown(folder: Path) -> None:
    ranking = rank(Board(folder), TASK)
    assert ranking.entries
    assert all(entry.score.value is not None for entry in ranking.entries)
    assert all((entry.score.interval is not None) is (folder / "items").exists() for entry in ranking.entries)
    assert "torch" not in sys.modules


def aggregate(folder: Path) -> None:
    """What a board costs to read at all: every measurement's value, by trial and metric."""
    with duckdb.connect() as connection:
        connection.sql(
            "SELECT trial, metric, avg(value), max(value), count(*)"
            f" FROM read_parquet('{folder}/measurements/*.parquet') GROUP BY ALL"
        ).fetchall()


def measured(task: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Processor seconds of a task and the peak resident memory of its process, in GiB."""
    seconds = _seconds(lambda: task(folder))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _seconds(work: Callable[[], object]) -> float:
    """Processor seconds: other load on the machine does not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def apart(task: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A task's result, from a fresh process: its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *args, **options).result()


def _compared(entries: int, probes: int, runs: int) -> tuple[float, float, float]:
    ours, product = compared(entries, probes, runs)
    return ours, product, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def figures(args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    for probes in (1, 3):
        rounds = [apart(_compared, args.entries, probes, 1) for _ in range(args.repeats)]
        name = f"comparing {args.entries} entries, {probes} x {300 // probes} items"
        yield f"{name}: over one product", statistics.median(ours / product for ours, product, _ in rounds)
        yield f"{name}: s", statistics.median(ours for ours, _, _ in rounds)
        yield f"{name}: GiB", max(peak for _, _, peak in rounds)
    for measurements in args.measurements:
        for items in (False, True):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                trials = apart(board, folder, measurements, items=items)
                title = f"{measurements / 1e6:g} M measurements of {trials} trials{' with items' if items else ''}"
                rounds = [
                    (apart(measured, aggregate, folder), apart(measured, shown, folder)) for _ in range(args.repeats)
                ]
                yield f"{title}: over a DuckDB aggregate", statistics.median(ours[0] / bare[0] for bare, ours in rounds)
                yield f"{title}: s", statistics.median(ours[0] for _, ours in rounds)
                yield f"{title}: GiB", max(ours[1] for _, ours in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--measurements", type=int, nargs="*", default=[1_000_000, 4_500_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    found = {}
    for name, value in figures(args):
        found[name] = value
        print(f"{value:10.3g}  {name}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
