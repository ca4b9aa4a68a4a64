"""Published TOFU numbers, computed again from the per-example logs that open-unlearning publishes beside them.

A log's `avg_loss` is a mean over tokens, so each answer counts here as one token of that loss. So does each text of a
membership attack, with the score that the log holds.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from tasks.scoring import METRICS, score, summarise
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


ATTACKS = {
    "auc_loss": "mia_loss",
    "auc_min_k_40": "mia_min_k",
    "auc_min_k_plus_plus_40": "mia_min_k_plus_plus",
    "auc_gradient_norm": "mia_gradnorm",
}


@pytest.fixture(scope="module")
def logs(data: Path) -> dict[str, dict]:
    root = data / "openunlearning_eval_logs"
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
        theirs = METRICS["truth_ratio_geometric"].compute(sample) * right / (right + EPSILON)
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
        assert METRICS["rougeL_recall"].compute(sample) == pytest.approx(recall, abs=TOLERANCE)
    estimate = score("rougeL_recall", samples)
    assert estimate.value == pytest.approx(published(log, f"{side}_Q_A_ROUGE"), abs=TOLERANCE)


def test_forget_quality(logs):
    """The two-sample Kolmogorov-Smirnov test over the forget set's truth ratios: TOFU's forget quality."""
    tables = [[choices(logs[model], "forget")] for model in ("full", "retain99")]
    estimate = summarise("forget_quality", *tables)
    assert estimate.value == 0.006760732303569208 == published(logs["full"], "forget_quality")
    assert estimate.n == 40
    scores = [[row["score"] for row in logs[model]["forget_truth_ratio"]["value_by_index"].values()] for model in LOGS]
    assert estimate.value == ks_2samp(*scores).pvalue
    assert summarise("forget_quality_log10", *tables).value == pytest.approx(math.log10(0.006760732303569208), abs=1e-9)


@pytest.mark.parametrize(("model", "expected"), [("full", 0.5991534707368931), ("retain99", 0.5986022374345417)])
def test_model_utility(logs, model, expected):
    """The harmonic mean of nine numbers, each computed here from the examples: TOFU's model utility."""
    log = logs[model]
    tables = [answers(log, "retain"), generations(log, "retain"), choices(log, "retain")]
    for side in ("ra", "wf"):
        tables += [choices(log, side), generations(log, side)]
    assert published(log, "model_utility") == expected
    assert summarise("model_utility_geometric", tables).value == pytest.approx(expected, abs=TOLERANCE)


def test_the_arithmetic_truth_ratio_is_another_utility(logs):
    """Published code has two truth ratios under one name; their utilities of one model are 0.03 apart or more."""
    log = logs["full"]
    tables = [answers(log, "retain"), generations(log, "retain"), choices(log, "retain")]
    for side in ("ra", "wf"):
        tables += [choices(log, side), generations(log, side)]
    geometric, arithmetic = (summarise(f"model_utility_{kind}", tables).value for kind in ("geometric", "arithmetic"))
    assert geometric - arithmetic > 0.03  # the arithmetic mean of wrong answers is never below the geometric one


def attacked(log: dict, name: str) -> list[list[Sample]]:
    """Forget and held-out texts of one token, whose membership score of any kind is the one in the log."""
    return [
        [
            Sample(index, "", token_logprobs=(-row["score"],), vocab_means=(0.0,), vocab_variances=(1.0,),
                   scalars=(("gradient_norm", row["score"]),))
            for index, row in log[name][side]["value_by_index"].items()
        ]
        for side in ("forget", "holdout")
    ]  # fmt: skip


@per_model
@pytest.mark.parametrize("metric", ATTACKS)
def test_auc_of_membership_attacks(logs, model, metric):
    log, name = logs[model], ATTACKS[metric]
    assert summarise(metric, attacked(log, name)).value == pytest.approx(published(log, name), abs=1e-12)


def test_auc_beside_the_reference_model(logs):
    """The log's losses of the reference model are other roundings of the retrained model's: one pair of 1600 turns."""
    model, retrained = (attacked(logs[name], "mia_loss") for name in ("full", "retain99"))
    excess = attacked(logs["full"], "mia_reference")
    reference = [
        [replace(one, token_logprobs=(one.token_logprobs[0] - beyond.token_logprobs[0],)) for one, beyond in pairs]
        for pairs in (zip(*tables, strict=True) for tables in zip(model, excess, strict=True))
    ]
    theirs = published(logs["full"], "mia_reference")
    assert summarise("auc_reference", model, reference).value == pytest.approx(theirs, abs=1e-12)
    assert summarise("auc_reference", model, retrained).value == pytest.approx(theirs, abs=1.01 / 1600)


@per_model
def test_zlib_of_the_answers(logs, data, model):
    """Loss and zlib score of one row give the bytes that were divided by: those of the answer alone."""
    log = logs[model]
    texts = {
        "forget": [json.loads(line) for line in (data / "tofu/forget01.json").read_text().splitlines()],
        "holdout": json.loads((data / "tofu/holdout01.json").read_text()),
    }
    tables = []
    for side, rows in texts.items():
        losses, scores = (log[name][side]["value_by_index"] for name in ("mia_loss", "mia_zlib"))
        table = [
            Sample(str(index), row["answer"], token_logprobs=(-losses[str(index)]["score"],))
            for index, row in enumerate(rows)
        ]
        for sample in table:
            assert METRICS["zlib"].compute(sample) == pytest.approx(scores[sample.item]["score"], rel=1e-6)
        tables.append(table)
    assert summarise("auc_zlib", tables).value == pytest.approx(published(log, "mia_zlib"), abs=1e-12)


def test_privacy_leakage(logs):
    tables = (attacked(logs[model], "mia_min_k") for model in ("full", "retain99"))
    theirs = published(logs["full"], "privleak")  # with 1e-10 added under the line
    assert summarise("privleak_min_k_40", *tables).value == pytest.approx(theirs, abs=TOLERANCE)
    assert theirs == pytest.approx(-100, abs=TOLERANCE)


def test_privacy_leakage_of_the_retrained_model_is_zero_and_not_what_a_constant_makes_of_it(logs):
    """Published code puts 0.5 where no reference log is given: the retrained model then leaks 5.9."""
    retrained = attacked(logs["retain99"], "mia_min_k")
    assert summarise("privleak_min_k_40", retrained, retrained).value == 0.0
    assert published(logs["retain99"], "privleak") == pytest.approx(5.875, abs=TOLERANCE)


@per_model
def test_rouge_1_and_f1_of_every_example(logs, model):
    for side in RIGHT:
        rows = logs[model][f"{side}_Q_A_ROUGE"]["value_by_index"]
        for sample in generations(logs[model], side):
            row = rows[sample.item]
            assert METRICS["rouge1_recall"].compute(sample) == pytest.approx(row["rouge1_recall"], abs=TOLERANCE)
            assert METRICS["rougeL_f1_stemmed"].compute(sample) == pytest.approx(row["rougeL_f1"], abs=TOLERANCE)
