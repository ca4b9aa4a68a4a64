"""Benchmark of scoring: a million samples through all metrics of their kind, and ROUGE of generated texts.

    python benchmarks/scoring.py [--rows N] [--texts N] [--processes N] [--repeats N] [--json FILE]

Each part runs in one process and on all cores, in a fresh process, so that its peak memory is its own.
Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import rescoring, schema
from tasks.scoring import METRICS
from tasks.task import ProbeKind

TOKENS = 40
ANSWERS = 6
PART = 50_000
ITEMS = 1000
"""Questions of one probe: rows with one samples id."""

METRICS_OF = {kind.value: [name for name, metric in METRICS.items() if metric.kind is kind] for kind in ProbeKind}


def logprob(start: int, n: int) -> dict[str, Any]:
    """Answers of about 40 tokens with everything that a membership probe needs."""
    rng = np.random.default_rng(start)
    lengths = rng.integers(TOKENS // 2, TOKENS * 3 // 2 + 1, n)

    def lists(flat: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), pa.array(flat))

    tokens = int(lengths.sum())
    norms = pa.MapArray.from_arrays(
        np.arange(n + 1, dtype=np.int32), pa.array(["gradient_norm"] * n), pa.array(rng.random(n))
    )
    return {
        "reference": references(n, TOKENS * 2 // 3),
        "token_logprobs": lists(-rng.exponential(1.0, tokens)),
        "token_correct": lists(rng.random(tokens) < 0.7),
        "vocab_means": lists(-3 - rng.random(tokens)),
        "vocab_variances": lists(1 + rng.random(tokens)),
        "scalars": norms,
    }


def choice(start: int, n: int) -> dict[str, Any]:
    rng = np.random.default_rng(start)
    offsets = np.arange(0, ANSWERS * n + 1, ANSWERS, dtype=np.int32)
    return {
        "reference": references(n, 8),
        "choice_logprobs": pa.ListArray.from_arrays(offsets, pa.array(-20 * rng.random(ANSWERS * n))),
        "choice_lengths": pa.ListArray.from_arrays(offsets, pa.array(rng.integers(3, 20, ANSWERS * n))),
        "correct": pa.array(rng.integers(0, ANSWERS, n)),
    }


def generate(start: int, n: int) -> dict[str, Any]:
    return {"reference": references(n, 30), "generated": texts(start, n, 40)}


def texts(seed: int, n: int, words: int) -> pa.Array:
    rng = random.Random(seed)
    known = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 10))) for _ in range(300)]
    return pa.array([" ".join(rng.choices(known, k=rng.randint(words // 2, words * 3 // 2))) for _ in range(n)])


def references(n: int, words: int) -> pa.Array:
    """Right answers: the same in every evaluation, as on a board."""
    return texts(0, ITEMS, words).take(pa.array(np.arange(n) % ITEMS))


def write(path: Path, rows: int, kinds: dict[str, Callable[[int, int], dict[str, Any]]]) -> None:
    """A file of the samples table with as many rows of each kind."""
    wanted = schema.TABLES["samples"]
    with pq.ParquetWriter(path, wanted, compression="zstd") as file:
        for start in range(0, rows, PART * len(kinds)):
            for index, (kind, make) in enumerate(kinds.items()):
                n = min(PART, max(0, rows - start - index * PART))
                items = np.arange(start, start + n)
                columns = {
                    "samples": pa.array([f"{item // ITEMS:064x}" for item in items.tolist()]),
                    "probe": pa.array([kind] * n),
                    "item": pa.array([f"item{item % ITEMS}" for item in items.tolist()]),
                    **make(start + index, n),
                }
                nulls = {field.name: pa.nulls(n, field.type) for field in wanted if field.name not in columns}
                table = pa.table({**columns, **nulls}).select(wanted.names)
                file.write_table(table.cast(wanted))


def rescored(path: Path, metrics_of: dict[str, list[str]], processes: int) -> tuple[float, float]:
    """Wall time in seconds, and an upper bound of the peak resident memory of all processes together, in GiB."""
    started = time.perf_counter()
    numbers = rescoring.rescore([path], metrics_of, processes)
    seconds = time.perf_counter() - started
    assert numbers and all(estimate.known for estimate in numbers.values())
    assert "torch" not in sys.modules
    own, largest_other = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, (own + processes * largest_other) / 2**20


def apart(*args: Any) -> tuple[float, float]:
    """`rescored` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(rescored, *args).result()


def spin(steps: int) -> int:
    return sum(step * step % 7 for step in range(steps))


def cores(processes: int, steps: int = 5_000_000) -> float:
    """Speed-up of plain counting in so many processes over one: the best that this (shared) machine can give."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(spin, [1000] * processes))  # all have started
        started = time.perf_counter()
        pool.submit(spin, steps).result()
        middle = time.perf_counter()
        list(pool.map(spin, [steps] * processes))
    return processes * (middle - started) / (time.perf_counter() - middle)


def part(
    name: str, path: Path, metrics_of: dict[str, list[str]], rows: int, args: argparse.Namespace
) -> dict[str, float]:
    """Medians in one process and on all cores, alternating: other load on the machine affects both alike."""
    alone, together = zip(
        *((apart(path, metrics_of, 1), apart(path, metrics_of, args.processes)) for _ in range(args.repeats)),
        strict=True,
    )
    figures = {f"{name}_ratio": statistics.median(one[0] / all_[0] for one, all_ in zip(alone, together, strict=True))}
    for processes, runs in ((1, alone), (args.processes, together)):
        seconds, peaks = zip(*runs, strict=True)
        figures |= {
            f"{name}_seconds_{processes}": statistics.median(seconds),
            f"{name}_rows_per_second_{processes}": rows / statistics.median(seconds),
            f"{name}_peak_gib_{processes}": max(peaks),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="log-probability and choice samples, half and half")
    parser.add_argument("--texts", type=int, default=200_000, help="generated samples: ROUGE-L recall and F1")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="medians are printed, of memory the highest peak")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    figures: dict[str, float] = {"rows": args.rows, "texts": args.texts}
    with tempfile.TemporaryDirectory() as folder:
        mixed, generated = Path(folder) / "mixed.parquet", Path(folder) / "texts.parquet"
        write(mixed, args.rows, {"logprob": logprob, "choice": choice})
        write(generated, args.texts, {"generate": generate})
        figures |= part("rows", mixed, {kind: METRICS_OF[kind] for kind in ("logprob", "choice")}, args.rows, args)
        figures |= part("texts", generated, {"generate": ["rougeL_recall", "rougeL_f1"]}, args.texts, args)
    figures["ratio_bound"] = statistics.median(cores(args.processes) for _ in range(args.repeats))
    for name, figure in figures.items():
        print(f"{name:24} {figure:,.2f}" if isinstance(figure, float) else f"{name:24} {figure:,}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
