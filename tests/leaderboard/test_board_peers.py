"""open-unlearning's logs, read and scored: published logs, and small ones made up here by its formulas, in numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from leaderboard.peers.line import Verdict
from leaderboard.peers.logs import Log
from leaderboard.peers.open_unlearning import read
from tests.support.open_unlearning_logs import (
    EPSILON,
    MIN_K,
    RIGHT,
    WRONG,
    attack,
    by_index,
    line,
    losses,
    paraphrased,
    put,
    texts,
    truth_ratios,
)

PUBLISHED = Path("openunlearning_eval_logs")
FULL = PUBLISHED / "tofu_Llama-3.2-1B-Instruct_full/evals_forget01"
RETAIN99 = PUBLISHED / "tofu_Llama-3.2-1B-Instruct_retain99"


@pytest.mark.parametrize(
    ("model", "retrained", "explained"),
    [(FULL, RETAIN99, set()), (RETAIN99, None, {"wf_Truth_Ratio", "privleak"}), (FULL, None, {"privleak"})],
    ids=["full", "retain99", "full alone"],
)
def test_every_published_number_comes_out(data, model, retrained, explained):
    found = read(Log.read(data / model), Log.read(data / retrained) if retrained else None)
    assert found.unread == ()
    summary = json.loads((data / model / "TOFU_SUMMARY.json").read_text())
    assert summary.items() <= {one.key: one.published for one in found.lines}.items()
    for one in found.lines:
        assert not one.unlike, one
        if one.key in explained:
            assert one.verdict is Verdict.VARIANT
            assert one.note
        elif one.key == "forget_quality" and not retrained:
            assert (one.verdict, one.ours.value) == (Verdict.NULL, None)
            assert "--retrained" in one.note
        else:
            assert abs(one.difference) <= 1e-6, one
    assert len(found.lines) >= 30


def test_forget_quality_of_the_published_logs(data):
    found = read(Log.read(data / FULL), Log.read(data / RETAIN99))
    assert line(found, "forget_quality").ours.value == 0.006760732303569208


def test_a_null_row_shifts_no_other(tmp_path):
    """Published code drops null rows and then joins truth ratios to indices by place: all later rows are shifted."""
    right = [1.0, None, 2.0, 0.25]
    found = read(Log.read(put(tmp_path, paraphrased(right))))
    samples = {sample.item: sample for sample in found.model.probe("forget_paraphrase")}
    assert samples.keys() == {"0", "2", "3"}
    assert samples["2"].choice_logprobs == (-2.0, -1.0, -4.0)
    ratio = line(found, "forget_truth_ratio")
    assert ratio.verdict is Verdict.EQUAL, "the mean does not depend on the order"
    assert ratio.unlike == 2, "index 2 has index 3's ratio, index 3 none"
    assert "shifted" in ratio.note
    assert line(found, "forget_Q_A_PARA_Prob").ours.n == 3


def test_rows_are_joined_by_index_whatever_their_order(tmp_path):
    metrics = paraphrased()
    for name in ("forget_Q_A_PERT_Prob", "forget_truth_ratio"):
        metrics[name]["value_by_index"] = dict(reversed(metrics[name]["value_by_index"].items()))
    ratio = line(read(Log.read(put(tmp_path, metrics))), "forget_truth_ratio")
    assert (ratio.verdict, ratio.unlike) == (Verdict.EQUAL, 0)


def test_a_wrecked_model_is_not_truthful(tmp_path):
    """Published code adds 1e-10 to the denominator: a model that finds everything unlikely looks truthful."""
    right, wrong = [60.0, 70.0], [[50.0, 52.0], [50.0, 55.0]]
    pert = {str(i): {"prob": [0.0, 0.0], "avg_loss": row} for i, row in enumerate(wrong)}
    metrics = {
        "ra_Q_A_Prob": losses(right),
        "ra_Q_A_PERT_Prob": {"agg_value": 0.0, "value_by_index": pert},
        "ra_Truth_Ratio": truth_ratios(right, wrong, forget=False),
    }
    ratio = line(read(Log.read(put(tmp_path, metrics))), "ra_Truth_Ratio")
    assert ratio.published == pytest.approx(1.0)
    assert ratio.ours.value == 0.0
    assert (ratio.verdict, ratio.unlike) == (Verdict.VARIANT, 0)
    assert "1e-10" in ratio.note


def test_the_variant_of_unlikely_forget_answers_is_named(tmp_path):
    right, wrong = [22.0, 23.0], [[18.0, 18.0], [19.0, 20.0]]  # probabilities near 1e-10, ratios above 1
    ratio = line(read(Log.read(put(tmp_path, paraphrased(right, wrong)))), "forget_truth_ratio")
    assert ratio.ours.value == pytest.approx((math.exp(-4) + math.exp(-3.5)) / 2)
    assert (ratio.verdict, ratio.unlike) == (Verdict.VARIANT, 0)


def test_forget_quality_is_scipys(tmp_path):
    other = [0.1, 0.2, 0.1, 0.3]
    expected = ks_2samp(
        *(np.exp(-np.mean(WRONG, axis=1)) / (np.exp(-np.array(v)) + EPSILON) for v in (RIGHT, other))
    ).pvalue
    metrics = {**paraphrased(), "forget_quality": {"agg_value": float(expected)}}
    found = read(Log.read(put(tmp_path / "a", metrics)), Log.read(put(tmp_path / "b", paraphrased(other))))
    assert line(found, "forget_quality").ours.value == pytest.approx(expected, rel=1e-12)
    assert line(found, "forget_quality").verdict is Verdict.EQUAL


def test_a_tiny_p_value_is_not_equal_to_another_tiny_one(tmp_path):
    right, wrong = [0.1 + 0.01 * i for i in range(40)], [[2.0]] * 40
    expected = 2 / math.comb(80, 40)  # nothing overlaps
    for published, verdict in ((1e-20, Verdict.DIFFERS), (expected, Verdict.EQUAL)):
        metrics = {**paraphrased(right, wrong), "forget_quality": {"agg_value": published}}
        log = Log.read(put(tmp_path / "model", metrics))
        retrained = Log.read(put(tmp_path / "retrained", paraphrased([3 + v for v in right], wrong)))
        quality = line(read(log, retrained), "forget_quality")
        assert quality.ours.value == pytest.approx(expected, rel=1e-9)
        assert quality.verdict is verdict


def test_model_utility_is_a_harmonic_mean_of_nine(tmp_path):
    texts_entry = texts([("a b c", "a b"), ("d e", "d e f")], "rougeL_recall")
    metrics, terms = {}, [texts_entry["agg_value"]] * 3
    for side in ("retain", "ra", "wf"):
        right, wrong = RIGHT[:2], WRONG[:2]
        key = "retain_Q_A_PARA_Prob" if side == "retain" else f"{side}_Q_A_Prob"
        pert = {str(i): {"prob": np.exp(-np.array(row)).tolist(), "avg_loss": row} for i, row in enumerate(wrong)}
        metrics[key] = losses(right)
        metrics[f"{side}_Q_A_PERT_Prob"] = {"agg_value": 0.0, "value_by_index": pert}
        metrics[f"{side}_Q_A_ROUGE"] = texts_entry
        terms.append(truth_ratios(right, wrong, forget=False)["agg_value"])
        if side != "retain":
            share = [
                math.exp(-r) / (math.exp(-r) + sum(map(math.exp, -np.array(w))))
                for r, w in zip(right, wrong, strict=True)
            ]
            terms.append(float(np.mean(share)))
    metrics["retain_Q_A_Prob"] = losses([0.1, 0.2])
    terms.append(metrics["retain_Q_A_Prob"]["agg_value"])
    metrics["model_utility"] = {"agg_value": float(hmean(terms))}
    utility = line(read(Log.read(put(tmp_path / "whole", metrics))), "model_utility")
    assert utility.ours.value == pytest.approx(hmean(terms), abs=1e-9)
    assert utility.verdict is Verdict.EQUAL
    del metrics["wf_Q_A_ROUGE"]
    lacking = line(read(Log.read(put(tmp_path / "less", metrics))), "model_utility")
    assert (lacking.ours.value, lacking.verdict) == (None, Verdict.NULL)
    assert "world_facts_generated" in lacking.note


def test_muse(tmp_path):
    pairs = [("The cats were running to the river", "a cat runs to rivers"), ("Nothing", ""), ("one two", "two one")]
    auc = attack(*MIN_K)["agg_value"]
    metrics = {name: texts(pairs, "rougeL_f1") for name in ("forget_verbmem_ROUGE", "retain_knowmem_ROUGE")}
    metrics["mia_min_k"] = attack(*MIN_K)
    metrics["privleak"] = {"agg_value": ((1 - auc) - 0.5) / (0.5 + EPSILON) * 100}
    metrics["forget_gibberish"] = {"agg_value": 0.9, "value_by_index": {}}
    found = read(Log.read(put(tmp_path / "model", metrics, "MUSE")))
    for name, probe in (("forget_verbmem_ROUGE", "forget_verbatim"), ("retain_knowmem_ROUGE", "retain_knowledge")):
        rouge = line(found, name)
        assert (rouge.probe, rouge.metric, rouge.unlike) == (probe, "rougeL_f1_stemmed", 0)
        assert rouge.ours.value == pytest.approx(metrics[name]["agg_value"], abs=1e-12)
    assert line(found, "mia_min_k").ours.value == pytest.approx(auc, abs=1e-15)
    leak = line(found, "privleak")
    assert (leak.ours.value, leak.verdict) == (None, Verdict.VARIANT)
    assert "0.5" in leak.note
    assert found.unread == ("forget_gibberish",)

    reference = attack([1.0, 3.0], [2.0, 4.0])
    against = {**metrics, "privleak": {"agg_value": ((1 - auc) - 0.25) / (0.25 + EPSILON) * 100}}
    log = Log.read(put(tmp_path / "against", against, "MUSE"))
    leak = line(read(log, Log.read(put(tmp_path / "retrained", {"mia_min_k": reference}, "MUSE"))), "privleak")
    assert leak.verdict is Verdict.FROM_LOG_SCORES
    assert leak.ours.value == pytest.approx(100 * ((1 - auc) / 0.25 - 1))


def test_a_tampered_rouge_is_counted(tmp_path):
    """The aggregate is computed from the texts, and so is every example's ROUGE that the log states."""
    metrics = {"forget_Q_A_ROUGE": texts([("a b", "a b"), ("c d", "c")], "rougeL_recall")}
    metrics["forget_Q_A_ROUGE"]["value_by_index"]["1"]["rougeL_f1"] += 0.1
    metrics["forget_Q_A_ROUGE"]["agg_value"] += 0.1
    rouge = line(read(Log.read(put(tmp_path, metrics))), "forget_Q_A_ROUGE")
    assert (rouge.unlike, rouge.verdict) == (1, Verdict.DIFFERS)
    assert rouge.difference == pytest.approx(-0.1)


def test_scores_that_cannot_be_computed_again_are_named(tmp_path):
    """Published code gives 1/n where nothing is extracted; the log has no tokens, so its scores stay as they are."""
    scores = [1 / 7, 0.5, None]
    metrics = {"extraction_strength": {"agg_value": (1 / 7 + 0.5) / 2, "value_by_index": by_index("score", scores)}}
    extraction = line(read(Log.read(put(tmp_path, metrics))), "extraction_strength")
    assert (extraction.metric, extraction.verdict, extraction.ours.n) == (
        "extraction_strength_published",
        Verdict.FROM_LOG_SCORES,
        2,
    )
    assert "1/n" in extraction.note


def test_numbers_that_are_missing_have_reasons(tmp_path):
    metrics = {
        "forget_quality": {"agg_value": None},
        "forget_Q_A_Prob": {"agg_value": math.nan, "value_by_index": {"0": {"prob": math.nan, "avg_loss": math.nan}}},
    }
    found = read(Log.read(put(tmp_path, metrics, summary={"model_utility": 0.5, "forget_Q_A_ROUGE": 0.25})))
    assert {one.key: one.verdict for one in found.lines} == dict.fromkeys(
        ("forget_quality", "forget_Q_A_Prob", "model_utility", "forget_Q_A_ROUGE"), Verdict.NULL
    )
    assert all(one.note for one in found.lines)
    assert json.loads(json.dumps([one.as_json() for one in found.lines], allow_nan=False))[1]["published"] is None


def test_an_aggregate_is_the_summarys_where_it_has_one(tmp_path):
    metrics = {"forget_Q_A_Prob": losses([1.0]), "retain_Q_A_Prob": losses([2.0])}
    found = read(Log.read(put(tmp_path, metrics, summary={"forget_Q_A_Prob": 0.1})))
    assert line(found, "forget_Q_A_Prob").published == 0.1
    assert line(found, "retain_Q_A_Prob").published == math.exp(-2)
