"""Benchmark of `regrade import`: a large log of open-unlearning, beside plain `json.load` of the same file.

    python benchmarks/importing.py [--examples N] [--repeats N] [--json FILE]

The log has four tables of N examples with answers, paraphrases, five wrong answers each and generated texts. Reading it
means to check it, to convert it to samples and to score these; each reading is in a fresh process, in turn with
`json.load`, so that other load on the machine affects both alike. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import json
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

from leaderboard.peers.logs import Log
from leaderboard.peers.open_unlearning import read

WRONG = 5
WORDS = 25
SIDES = ("forget", "retain", "ra", "wf")


def log(examples: int) -> dict[str, Any]:
    """A log of made-up texts and losses."""
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 10))) for _ in range(3000)]
    indices = [str(index) for index in range(examples)]

    def text() -> str:
        return " ".join(rng.choices(known, k=rng.randint(WORDS // 2, WORDS * 3 // 2)))

    def metric(row: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return {"agg_value": 0.5, "value_by_index": {index: row() for index in indices}}

    def loss() -> dict[str, Any]:
        return {"prob": rng.random(), "avg_loss": rng.expovariate(1)}

    def losses() -> dict[str, Any]:
        both = [loss() for _ in range(WRONG)]
        return {"prob": [one["prob"] for one in both], "avg_loss": [one["avg_loss"] for one in both]}

    def generated() -> dict[str, Any]:
        numbers = {name: rng.random() for name in ("rouge1_recall", "rougeL_f1", "rougeL_recall")}
        return {**numbers, "input": text(), "ground_truth": text(), "generation": text()}

    found: dict[str, Any] = {}
    for side in SIDES:
        found[f"{side}_Q_A_Prob"] = metric(loss)
        if side in ("forget", "retain"):
            found[f"{side}_Q_A_PARA_Prob"] = metric(loss)
        found[f"{side}_Q_A_PERT_Prob"] = metric(losses)
        found[f"{side}_Q_A_ROUGE"] = metric(generated)
        found[f"{side}_Truth_Ratio"] = metric(lambda: {"score": rng.random()})
    return found


def write(folder: Path, examples: int) -> int:
    """Write the log, and return its size in bytes."""
    return (folder / "TOFU_EVAL.json").write_text(json.dumps(log(examples), indent=4))


def plain(folder: Path) -> None:
    with open(folder / "TOFU_EVAL.json") as opened:
        json.load(opened)


def imported(folder: Path) -> None:
    assert len(read(Log.read(folder)).lines) == 18
    assert "torch" not in sys.modules


def measured(task: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Processor seconds of a task and the peak resident memory of its process, in GiB."""
    started = time.process_time()
    task(folder)
    seconds = time.process_time() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def apart(task: Callable[..., Any], *args: Any) -> Any:
    """A task's result, from a fresh process: its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=17_500, help="examples of each of the four tables")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = apart(write, folder, args.examples) / 1e6
        rounds = [(apart(measured, plain, folder), apart(measured, imported, folder)) for _ in range(args.repeats)]
    figures = {
        "size_mb": size,
        "ratio": statistics.median(ours[0] / theirs[0] for theirs, ours in rounds),
        "import_cpu_s": statistics.median(ours[0] for _, ours in rounds),
        "json_load_cpu_s": statistics.median(theirs[0] for theirs, _ in rounds),
        "import_gib": max(ours[1] for _, ours in rounds),
        "json_load_gib": max(theirs[1] for theirs, _ in rounds),
    }
    for name, value in figures.items():
        print(f"{name:>16} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
