"""Published TOFU numbers, computed again from the per-example logs that open-unlearning publishes beside them.

REGRADE_DATA names a folder with `openunlearning_eval_logs/`; without it these tests are skipped. A log's `avg_loss` is
a mean over tokens, so each answer counts here as one token of that loss.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from tasks.scoring import METRICS, score
from tasks.scoring.headline import harmonic_mean
from tasks.task import Sample

LOGS = {
    "full": "tofu_Llama-3.2-1B-Instruct_full/evals_forget01/TOFU_EVAL.json",
    "retain99": "tofu_Llama-3.2-1B-Instruct_retain99/TOFU_EVAL.json",
}
TOLERANCE = 1e-6  # the logs hold float32 losses and probabilities
EPSILON = 1e-10  # open-unlearning adds it to the right answer's probability under the ratio; we do not
EPSILON_IN_AGGREGATE = 2e-6  # what that is worth in a mean where right answers are as unlikely as 1e-6
RIGHT = {"forget": "forget_Q_A_PARA_Prob", "retain": "retain_Q_A_PARA_Prob", "ra": "ra_Q_A_Prob", "wf": "wf_Q_A_Prob"}
TRUTH_RATIO = {"forget": "forget_truth_ratio"} | {side: f"{side}_Truth_Ratio" for side in ("retain", "ra", "wf")}

per_model = pytest.mark.parametrize("model", LOGS)
per_side = pytest.mark.parametrize("side", RIGHT)


@pytest.fixture(scope="module")
def logs():
    folder = os.environ.get("REGRADE_DATA")
    if not folder:
        pytest.skip("REGRADE_DATA is not set: it names the folder with openunlearning_eval_logs/")
    root = Path(folder) / "openunlearning_eval_logs"
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    return {model: json.loads((root / path).read_text()) for model, path in LOGS.items()}


def choices(log: dict, side: str) -> list[Sample]:
    """The right answer (reworded, where TOFU rewords it) against TOFU's perturbed ones."""
    wrong = log[f"{side}_Q_A_PERT_Prob"]["value_by_index"]
    samples = []
    for index, row in log[RIGHT[side]]["value_by_index"].items():
        losses = (row["avg_loss"], *wrong[index]["avg_loss"])
        logprobs = tuple(-loss for loss in losses)
        samples.append(Sample(index, "", choice_logprobs=logprobs, choice_lengths=(1,) * len(losses), correct=0))
    return samples


def answers(log: dict, side: str) -> list[Sample]:
    rows = log[f"{side}_Q_A_Prob"]["value_by_index"]
    return [Sample(index, "", token_logprobs=(-row["avg_loss"],)) for index, row in rows.items()]


def generations(log: dict, side: str) -> list[Sample]:
    rows = log[f"{side}_Q_A_ROUGE"]["value_by_index"]
    return [Sample(index, row["ground_truth"], generated=row["generation"]) for index, row in rows.items()]


def published(log: dict, name: str) -> float:
    return log[name]["agg_value"]


@per_model
@per_side
def test_truth_ratio_of_every_example(logs, model, side):
    log = logs[model]
    rows = log[TRUTH_RATIO[side]]["value_by_index"]
    for sample in choices(log, side):
        right = math.exp(sample.choice_logprobs[0])
        theirs = METRICS["truth_ratio_geometric"].of(sample) * right / (right + EPSILON)
        assert theirs == pytest.approx(rows[sample.item]["score"], rel=1e-12)


@per_model
@per_side
def test_truth_ratio_aggregate(logs, model, side):
    metric = "truth_ratio_geometric_forget" if side == "forget" else "truth_ratio_geometric_retain"
    estimate = score(metric, choices(logs[model], side))
    tolerance = EPSILON_IN_AGGREGATE if side in ("ra", "wf") else TOLERANCE
    assert estimate.value == pytest.approx(published(logs[model], TRUTH_RATIO[side]), abs=tolerance)


@per_model
@per_side
def test_probability(logs, model, side):
    estimate = score("probability", answers(logs[model], side))
    assert estimate.value == pytest.approx(published(logs[model], f"{side}_Q_A_Prob"), abs=TOLERANCE)


@per_model
@pytest.mark.parametrize("side", ["ra", "wf"])
def test_normalised_probability(logs, model, side):
    estimate = score("normalised_probability", choices(logs[model], side))
    assert estimate.value == pytest.approx(published(logs[model], f"{side}_Q_A_Prob_normalised"), abs=TOLERANCE)


@per_model
@per_side
def test_rouge_recall(logs, model, side):
    log, samples = logs[model], generations(logs[model], side)
    rows = log[f"{side}_Q_A_ROUGE"]["value_by_index"]
    for sample in samples:
        recall = rows[sample.item]["rougeL_recall"]
        assert METRICS["rougeL_recall"].of(sample) == pytest.approx(recall, abs=TOLERANCE)
    estimate = score("rougeL_recall", samples)
    assert estimate.value == pytest.approx(published(log, f"{side}_Q_A_ROUGE"), abs=TOLERANCE)


def test_forget_quality(logs):
    """The two-sample Kolmogorov-Smirnov test over the forget set's truth ratios: TOFU's forget quality."""
    ratio = METRICS["truth_ratio_geometric"].of
    full, retained = ([ratio(sample) for sample in choices(logs[model], "forget")] for model in ("full", "retain99"))
    p_value = ks_2samp(full, retained).pvalue
    assert p_value == pytest.approx(0.006760732303569208, rel=1e-12)
    assert p_value == pytest.approx(published(logs["full"], "forget_quality"), rel=1e-12)


@per_model
def test_model_utility(logs, model):
    """The harmonic mean of nine numbers, each computed here from the examples: TOFU's model utility."""
    log = logs[model]
    terms = [score("probability", answers(log, "retain"))]
    terms += [score("normalised_probability", choices(log, side)) for side in ("ra", "wf")]
    for side in ("retain", "ra", "wf"):
        terms.append(score("truth_ratio_geometric_retain", choices(log, side)))
        terms.append(score("rougeL_recall", generations(log, side)))
    utility = harmonic_mean(*terms)
    assert utility.value == pytest.approx(published(log, "model_utility"), abs=TOLERANCE)
