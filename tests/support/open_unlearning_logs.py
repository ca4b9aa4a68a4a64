"""open-unlearning's logs, made up by its formulas in numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from leaderboard.peers.open_unlearning import Imported

EPSILON = 1e-10
SCORER = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def by_index(field: str, values) -> dict:
    return {str(i): None if value is None else {field: value} for i, value in enumerate(values)}


def losses(values: list[float | None]) -> dict:
    """A metric of one answer per example, as it is published."""
    probs = [math.exp(-v) for v in values if v is not None]
    rows = {str(i): None if v is None else {"prob": math.exp(-v), "avg_loss": v} for i, v in enumerate(values)}
    return {"agg_value": float(np.mean(probs)), "value_by_index": rows}


def truth_ratios(right: list[float | None], wrong: list[list[float]], forget: bool) -> dict:
    """Published: null rows are dropped, and what is left is joined by place to the indices of all rows."""
    kept = [i for i, v in enumerate(right) if v is not None]
    x = np.exp(-np.mean([wrong[i] for i in kept], axis=1)) / (np.exp(-np.array([right[i] for i in kept])) + EPSILON)
    agg = np.minimum(x, 1 / (x + EPSILON)) if forget else np.maximum(0, 1 - x)
    rows = {str(i): {"score": float(v)} for i, v in zip(range(len(right)), x, strict=False)}
    return {"agg_value": float(agg.mean()), "value_by_index": rows}


def texts(pairs: list[tuple[str, str]], aggregated: str) -> dict:
    """Generated texts with the ROUGE that rouge-score gives them."""
    rows = {}
    for i, (reference, generated) in enumerate(pairs):
        found = SCORER.score(reference, generated)
        rows[str(i)] = {
            "rouge1_recall": found["rouge1"].recall,
            "rougeL_recall": found["rougeL"].recall,
            "rougeL_f1": found["rougeL"].fmeasure,
            "input": "q",
            "ground_truth": reference,
            "generation": generated,
        }
    return {"agg_value": float(np.mean([row[aggregated] for row in rows.values()])), "value_by_index": rows}


def attack(forget: list[float], holdout: list[float]) -> dict:
    """A membership attack: the share of pairs in which the held-out text scores higher."""
    auc = np.mean([(h > f) + (h == f) / 2 for f in forget for h in holdout])
    sides = {side: {"value_by_index": by_index("score", v)} for side, v in (("forget", forget), ("holdout", holdout))}
    return {**sides, "auc": float(auc), "agg_value": float(auc)}


def put(folder: Path, metrics: dict, benchmark: str = "TOFU", summary: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{benchmark}_EVAL.json").write_text(json.dumps(metrics))
    if summary is not None:
        (folder / f"{benchmark}_SUMMARY.json").write_text(json.dumps(summary))
    return folder


def line(imported: Imported, key: str):
    (found,) = [found for found in imported.lines if found.key == key]
    return found


RIGHT, WRONG = [1.0, 0.5, 2.0, 0.25], [[1.5, 2.5], [0.5, 1.0], [1.0, 4.0], [3.0, 0.5]]


def paraphrased(right=RIGHT, wrong=WRONG) -> dict:
    perturbed = {str(i): {"prob": np.exp(-np.array(row)).tolist(), "avg_loss": row} for i, row in enumerate(wrong)}
    return {
        "forget_Q_A_PARA_Prob": losses(right),
        "forget_Q_A_PERT_Prob": {
            "agg_value": float(np.mean(np.exp(-np.array(wrong)))),
            "value_by_index": perturbed,
        },
        "forget_truth_ratio": truth_ratios(right, wrong, forget=True),
    }


MIN_K = ([1.0, 2.0, 3.0], [2.5, 3.5, 1.5])
