"""Rows for the tests of the board: small worlds whose headlines can be worked out by hand, and a large one to look at.

Every world has one probe of knowledge and one of utility, both with the target at 0.9 and chance at 0. The retrained
model knows 0.1, so that knowledge is (m - 0.1) / 0.8, and keeps 0.9 of utility.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from leaderboard.board import schema
from leaderboard.board.schema import matching
from leaderboard.board.store import Board
from tasks import Split, TaskEntry, attack_name, pocket

Row = dict[str, Any]

TASK = TaskEntry(
    name="paper",
    summary="a task that is worked out on paper; `conftest.py` puts it into the registry",
    build=pocket.build,
    attack_sets={
        "paper-1": dict.fromkeys(
            Split, ({"name": "none"}, {"name": "rtn", "bits": 2}, {"name": "relearn", "samples": 12, "steps": 20})
        )
    },
)
WIDE = TaskEntry(
    name="wide",
    summary="a task with as many attacks as an official set may have",
    build=pocket.build,
    attack_sets={
        "wide-1": dict.fromkeys(
            Split,
            (
                {"name": "none"},
                {"name": "rtn", "bits": 4},
                {"name": "nf4"},
                {"name": "prune", "sparsity": 0.5},
                {"name": "few_shot", "shots": 8, "source": "forget", "seed": 2},
                {"name": "paraphrase", "rewordings": 3},
                {"name": "prefill", "tokens": 8},
                {"name": "refusal_direction", "layers": [2, 3], "texts": 128},
                {"name": "relearn", "samples": 12, "steps": 20, "lr": 1e-3, "seed": 2},
                {"name": "relearn", "samples": 24, "steps": 24, "lr": 5e-4, "points": 3, "seed": 2},
                {"name": "relearn_far", "samples": 24, "steps": 60, "lr": 5e-4, "points": 3, "seed": 2},
            ),
        )
    },
)
ATTACKS = tuple(attack_name(settings) for settings in TASK.attack_sets[TASK.official][Split.TEST])
NONE, *TEACHING = ATTACKS
ENGINE = "transformers/float32"
ANCHOR_IDS = "target:retrained"


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def trial_row(entry: str, seed: int = 1, **changes: Any) -> Row:
    row: Row = {
        "trial": digest(entry, seed),
        "entry": entry,
        "status": "ok",
        "task": TASK.name,
        "task_version": 1,
        "data": "data",
        "model": "pocket-tiny",
        "objective": "npo",
        "smoothing": "none",
        "optimizer": "adamw",
        "grade": "first",
        "zo_ratio": 0.0,
        "steps": 60,
        "steps_done": 60,
        "seed": seed,
        "spec": "{}",
        "anchors": "anchors",
        "anchor_ids": ANCHOR_IDS,
        "value_calls": 0,
        "gradient_calls": 60,
        "directional_calls": 0,
        "curvature_calls": 0,
        "tokens": 10_000,
        "unlearn_seconds": 3.0,
        "written_at": "2026-01-01T00:00:00Z",
    }
    return row | changes


def measurement_row(trial: str, subject: str, value: float | None, **changes: Any) -> Row:
    row: Row = {
        "trial": trial,
        "subject": subject,
        "attack": NONE,
        "point": 0,
        "probe": "forget_qa",
        "subset": "forget",
        "split": "test",
        "matching": "raw",
        "engine": ENGINE,
        "metric": "probability",
        "value": value,
        "stderr": 0.01,
        "n": 48,
        "direction": "up",
        "headline": "knowledge",
        "chance": 0.0,
        "status": "ok" if value is not None else "null",
        "task": TASK.name,
        "task_version": 1,
        "anchors": "anchors",
        "anchor_ids": ANCHOR_IDS,
        "written_at": "2026-01-01T00:00:00Z",
    }
    return row | changes


def utility_row(trial: str, subject: str, value: float | None, **changes: Any) -> Row:
    retain = {"probe": "retain_qa", "subset": "retain", "headline": "utility"}
    return measurement_row(trial, subject, value, **(retain | changes))


def matching_row(trial: str, share: float | None, floor: float = 0.9, **changes: Any) -> Row:
    """The share of the unlearned weights in the matched weights that keep utility at a floor."""
    row = {"probe": "mixture", "subset": "retain", "split": "dev", "metric": "mixing_weight", "headline": None}
    return measurement_row(trial, "unlearned", share, **(row | {"matching": matching(floor), "stderr": None} | changes))


def anchor_rows(
    target: float = 0.9, retrained: float = 0.1, taught: Mapping[str, float] | None = None, **changes: Any
) -> list[Row]:
    """The anchors' measurements; `taught` is what each attack brings the retrained model to."""
    under = dict.fromkeys(TEACHING, retrained) | dict(taught or {})
    return [
        measurement_row("anchors", "target", target, **changes),
        measurement_row("anchors", "retrained", retrained, **changes),
        *(measurement_row("anchors", "retrained", value, attack=name, **changes) for name, value in under.items()),
        utility_row("anchors", "target", 0.9, **changes),
        utility_row("anchors", "retrained", 0.9, **changes),
    ]


def unlearned_rows(trial: str, knows: float, attacked: Mapping[str, float], useful: float, **changes: Any) -> list[Row]:
    """What a trial's model knows before and after each attack, and how useful it is, as raw values."""
    return [
        measurement_row(trial, "unlearned", knows, **changes),
        *(measurement_row(trial, "unlearned", value, attack=name, **changes) for name, value in attacked.items()),
        utility_row(trial, "unlearned", useful, **changes),
    ]


def entry_rows(entry: str, f: float, r: float, u: float, seed: int = 1, **changes: Any) -> tuple[Row, list[Row]]:
    """A trial row and measurements whose headlines are F = f, R = r <= f and U = u, by solving the formulas."""
    stderr = changes.pop("stderr", 0.01)
    row = trial_row(entry, seed, **changes)
    attacked = dict.fromkeys(TEACHING, 0.1 + 0.8 * (1 - f)) | {TEACHING[-1]: 0.1 + 0.8 * (1 - r)}
    rows = unlearned_rows(row["trial"], 0.1 + 0.8 * (1 - f), attacked, 0.9 * u, stderr=stderr)
    return row, [one | {"anchor_ids": row["anchor_ids"]} for one in rows]


def runs_of(entry: str, f: float, r: float, u: float, runs: int = 3, **changes: Any) -> list[tuple[Row, list[Row]]]:
    """Several runs with the same numbers: as many as a rank takes."""
    return [entry_rows(entry, f, r, u, seed, **changes) for seed in range(1, runs + 1)]


def schema_tables(trials: list[Row], measurements: list[Row]) -> dict[str, pa.Table]:
    """The tables of a world, with items that give its numbers exactly."""
    measurements = [with_samples(row) for row in measurements]
    content = {"trials": trials, "measurements": measurements, "items": item_rows(measurements)}
    return {table: schema.to_arrow(table, rows) for table, rows in content.items()}


def fill(board: Board, trials: list[Row], measurements: list[Row], noise: float = 0.0) -> None:
    """Appends a world to a board, with items as in `item_rows`."""
    measurements = [with_samples(row) for row in measurements]
    board.append("trials", trials)
    board.append("items", item_rows(measurements, noise))
    board.append("measurements", measurements)


def with_samples(row: Row) -> Row:
    """A measurement with the id of the evaluation that it comes from."""
    names = ("trial", "subject", "attack", "point", "split", "matching", "engine")
    return row if row.get("samples") else row | {"samples": digest(*(row.get(name) for name in names))}


def item_rows(measurements: Iterable[Row], noise: float = 0.0) -> list[Row]:
    """Items of headlines, whose means are the measurements' values.

    Without noise every model answers an item in proportion to its value, so that every share is the same in whatever
    items are drawn.

    Args:
        noise: deviation of an item's value, drawn for each model.
    """
    rows: dict[tuple[str, str, str], Row] = {}
    for row in map(with_samples, measurements):
        value, n = row["value"], row["n"]
        if row["headline"] and value is not None and n and abs(value) < 1e100:
            key = (row["samples"], row["probe"], row["metric"])
            rng = random.Random(repr((*key, noise)) if noise else row["probe"])
            raw = [rng.gauss(1.0, noise or 0.2) for _ in range(n)]
            shift = sum(raw) / n
            values = [value + one - shift if noise else value * one / shift for one in raw]
            items = [f"q{index:04}" for index in range(n)]
            rows[key] = dict(zip(("samples", "probe", "metric"), key, strict=True)) | {"item": items, "value": values}
    return list(rows.values())


def sample_rows(items: Iterable[Row]) -> list[Row]:
    """Samples that give these items: one token, as likely as the value."""
    return [
        {"samples": row["samples"], "probe": row["probe"], "item": item, "reference": "x"}
        | {"token_logprobs": [math.log(value)], "token_correct": [True]}
        for row in items
        for item, value in zip(row["item"], row["value"], strict=True)
    ]


def step_row(trial: str, steps: int = 3) -> Row:
    """The log of a run of so many steps."""
    counts, norms = list(range(1, steps + 1)), [1 / step for step in range(1, steps + 1)]
    losses = {"forget_loss": norms, "retain_loss": norms, "gradient_norm": norms, "update_norm": norms, "lr": norms}
    queries = {"value_queries": [0] * steps, "gradient_queries": counts, "curvature_queries": [0] * steps}
    return {"trial": trial, "request": "all", "step": counts, **losses, **queries, "seconds": norms}


def tables(*entries: tuple[Row, list[Row]], anchors: Iterable[Row] | None = None) -> dict[str, pa.Table]:
    """The tables `trials` and `measurements` of a world."""
    measured = [*(anchor_rows() if anchors is None else anchors), *(row for _, rows in entries for row in rows)]
    return schema_tables([row for row, _ in entries], measured)


SHOWCASE = (
    # optimizer, grade, objective, smoothing, zo_samples, zo_ratio, F, R, U, seeds
    ("adamw", "first", "npo", "none", None, 0.0, 0.97, 0.41, 0.95, 3),
    ("adamw", "first", "npo", "sam", None, 0.0, 0.95, 0.62, 0.94, 3),
    ("adamw", "first", "rmu", "none", None, 0.0, 0.88, 0.33, 0.97, 3),
    ("adamw", "first", "graddiff", "none", None, 0.0, 0.99, 0.47, 0.78, 3),
    ("sgd", "first", "npo", "none", None, 0.0, 0.71, 0.44, 0.985, 3),
    ("sophia", "second", "npo", "none", None, 0.0, 0.98, 0.52, 0.93, 3),
    ("sophia", "second", "npo", "stableun", None, 0.0, 0.96, 0.68, 0.91, 2),
    ("sign_adamw", "compressed", "npo", "none", None, 0.0, 0.93, 0.58, 0.95, 3),
    ("topk_adamw", "compressed", "npo", "none", None, 0.0, 0.90, 0.49, 0.96, 3),
    ("r_adazo", "zeroth", "npo", "none", 8, 1.0, 0.74, 0.66, 0.97, 3),
    ("zo_sgd", "zeroth", "npo", "none", 8, 1.0, 0.42, 0.39, 0.985, 3),
    ("hybrid", "hybrid", "npo", "none", 8, 0.25, 0.94, 0.77, 0.955, 3),
    ("hybrid", "hybrid", "npo", "none", 8, 0.5, 0.92, 0.81, 0.95, 3),
    ("hybrid", "hybrid", "rmu", "randomized", 8, 0.5, 0.89, 0.74, 0.97, 1),
    ("hybrid", "hybrid", "graddiff", "none", 8, 0.5, 0.99, 0.72, 0.84, 2),
)


def showcase() -> tuple[list[Row], list[Row]]:
    """Trials and measurements of a board with entries of every kind: the numbers are invented and look real."""
    rng = random.Random(1)
    trials: list[Row] = []
    measured = anchor_rows(taught={TEACHING[0]: 0.1, TEACHING[1]: 0.24})
    for line in SHOWCASE:
        optimizer, grade, objective, smoothing, samples, ratio, f, r, u, seeds = line
        calls = {"value_calls": round(60 * ratio) * 2 * (samples or 0), "gradient_calls": round(60 * (1 - ratio))}
        for seed in range(1, seeds + 1):
            forgot = min(1.0, f + rng.gauss(0, 0.01))
            kept_after = [max(0.0, min(forgot, r + shift + rng.gauss(0, 0.015))) for shift in (0.12, 0.0)]
            row = trial_row(
                digest(line), seed, optimizer=optimizer, grade=grade, objective=objective, smoothing=smoothing,
                zo_samples=samples, zo_ratio=ratio, curvature_calls=6 if grade == "second" else 0, **calls,
                tokens=2_400 * (calls["gradient_calls"] + calls["value_calls"]),
                unlearn_seconds=0.05 * calls["gradient_calls"] + 0.02 * calls["value_calls"],
            )  # fmt: skip
            attacked = {
                name: zero + 0.8 * (1 - share)
                for name, zero, share in zip(TEACHING, (0.1, 0.24), kept_after, strict=True)
            }
            useful = 0.9 * min(1.0, u + rng.gauss(0, 0.005))
            trials.append(row)
            measured += unlearned_rows(row["trial"], 0.1 + 0.8 * (1 - forgot), attacked, useful, stderr=0.015)
    diverged = trial_row(
        "diverged", optimizer="zo_sgd", grade="zeroth", status="diverged", reason="the loss is not finite"
    )
    failed = trial_row(
        "failed", objective="rmu", optimizer="sophia", grade="second", status="failed", reason="out of memory"
    )
    waiting, rows = entry_rows("waiting", 0.9, 0.8, 0.95, optimizer="muon", grade="first")
    elsewhere, other = entry_rows("elsewhere", 0.9, 0.8, 0.95, anchor_ids="another:pair", anchors="others")
    not_attacked = [row for row in rows if row["attack"] != TEACHING[1]]
    return [*trials, diverged, failed, waiting, elsewhere], [*measured, *not_attacked, *other]


def wide_showcase(floor: float = 0.9) -> tuple[list[Row], list[Row]]:
    """A board with ten attacks, two of them curves, and every headline at matched utility too."""
    rng = random.Random(2)
    attacks = [settings for settings in WIDE.attack_sets[WIDE.official][Split.TEST] if settings["name"] != "none"]
    points = {attack_name(settings): (8, 16, 24) if "points" in settings else (0,) for settings in attacks}
    ours = {"task": WIDE.name, "anchors": "wide anchors"}
    measured = anchor_rows(taught={}, **ours)[:2] + anchor_rows(**ours)[-2:]
    measured += [
        measurement_row("anchors", "retrained", 0.1, attack=attack, point=point, **ours)
        for attack, of in points.items()
        for point in of
    ]
    measured = [row | {"trial": ours["anchors"]} for row in measured]
    trials: list[Row] = []
    for place, line in enumerate(SHOWCASE):
        optimizer, grade, objective, smoothing, samples, ratio, f, r, u, seeds = line
        for seed in range(1, seeds + 1):
            row = trial_row(
                digest(line, "wide"), seed, optimizer=optimizer, grade=grade, objective=objective,
                smoothing=smoothing, zo_samples=samples, zo_ratio=ratio, **ours,
            )  # fmt: skip
            trials.append(row)
            share = min(1.0, 0.1 / (1 - u)) if u < 1 else 1.0
            for changes, left in (({}, 1.0), ({"matching": matching(floor)}, share)):
                same = ours | changes
                gone = f * left + rng.gauss(0, 0.01)
                measured.append(measurement_row(row["trial"], "unlearned", 0.9 - 0.8 * gone, stderr=0.015, **same))
                measured.append(utility_row(row["trial"], "unlearned", 0.9 * (1 - (1 - u) * left), **same))
                for number, (attack, of) in enumerate(points.items()):
                    back = (f - r) * (number + 1) / len(points)
                    for point in of:
                        value = 0.9 - 0.8 * left * (f - back * (point or 24) / 24) + rng.gauss(0, 0.02)
                        measured.append(
                            measurement_row(
                                row["trial"], "unlearned", value, attack=attack, point=point, stderr=0.015, **same
                            )
                        )
                        if place == 5 and attack.startswith("refusal"):
                            measured[-1] |= {"value": None, "status": "failed", "reason": "OutOfMemoryError: no memory"}
            measured.append(matching_row(row["trial"], share, floor, **ours))
    return trials, measured
