"""TOFU's own log, made of published losses and texts by its formulas, in numpy; and logs of other examples."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp

from leaderboard.board.store import Board
from leaderboard.peers import open_unlearning
from leaderboard.peers.line import Verdict
from leaderboard.peers.logs import Log
from leaderboard.peers.rows import add
from leaderboard.peers.tofu import AGGREGATES, FILE, read, read_log
from tasks.task import TaskError
from tests.support.command import regrade
from tests.support.open_unlearning_logs import MIN_K, attack, line, paraphrased, put, texts

LOGS = Path("openunlearning_eval_logs")
FULL = LOGS / "tofu_Llama-3.2-1B-Instruct_full/evals_forget01"
RETAIN99 = LOGS / "tofu_Llama-3.2-1B-Instruct_retain99"
SIDES = {
    "eval_log.json": ("retain", "Retain"),
    "eval_log_forget.json": ("forget", "Forget"),
    "eval_real_author_wo_options.json": ("ra", "Real Authors"),
    "eval_real_world_wo_options.json": ("wf", "Real World"),
}


def as_tofu(log: dict) -> dict:
    """The losses and texts of a published log, laid out as TOFU's own code writes them."""
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    tables = {}
    for name, (side, _) in SIDES.items():
        right, wrong, said = (log[f"{side}_Q_A_{kind}"]["value_by_index"] for kind in ("Prob", "PERT_Prob", "ROUGE"))
        # Real authors' and world facts' answers are scored twice, the second time in other batches, in bfloat16.
        again = {i: {"avg_loss": row["avg_loss"] * (1 + 0.02 * (int(i) % 3))} for i, row in right.items()}
        reworded = log[f"{side}_Q_A_PARA_Prob"]["value_by_index"] if side in ("forget", "retain") else again
        scores = {i: scorer.score(row["ground_truth"], row["generation"]) for i, row in said.items()}
        tables[name] = {
            "avg_gt_loss": {i: row["avg_loss"] for i, row in right.items()},
            "avg_paraphrased_loss": {i: row["avg_loss"] for i, row in reworded.items()},
            "average_perturb_loss": {i: row["avg_loss"] for i, row in wrong.items()},
            "truth_ratio": {
                i: math.exp(reworded[i]["avg_loss"] - np.mean(row["avg_loss"])) for i, row in wrong.items()
            },
            "rouge1_recall": {i: found["rouge1"].recall for i, found in scores.items()},
            "rougeL_recall": {i: found["rougeL"].recall for i, found in scores.items()},
            "generated_text": {i: [row["input"], row["generation"], row["ground_truth"]] for i, row in said.items()},
        }
    return tables


def by_the_script(tables: dict) -> dict[str, float]:
    found = {}
    for name, (side, title) in SIDES.items():
        table = tables[name]
        right, reworded, wrong = (
            np.array(list(table[field].values()))
            for field in ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss")
        )
        share = np.exp(-right) / (np.exp(-right) + np.exp(-wrong).sum(-1))
        found[f"Prob. {title}"] = float((np.exp(-right) if side in ("forget", "retain") else share).mean())
        found[f"ROUGE {title}"] = float(np.mean(list(table["rougeL_recall"].values())))
        x = np.exp(-wrong).mean(-1) / np.exp(-reworded)
        shaped = np.minimum(x, 1 / x) if side == "forget" else np.maximum(0, 1 - x)
        found[f"Truth Ratio {title}"] = float(shaped.mean())
    found["Model Utility"] = float(hmean([value for key, value in found.items() if "Forget" not in key]))
    return found


def ratios(table: dict) -> np.ndarray:
    wrong = np.array(list(table["average_perturb_loss"].values())).mean(-1)
    return np.exp(wrong - np.array(list(table["avg_paraphrased_loss"].values())))


@pytest.fixture
def pair(data, tmp_path) -> tuple[Path, Path, dict]:
    """Folders of a model's log with its aggregates and of the retrained model's without, and the aggregates."""
    full, other = (as_tofu(json.loads((data / one / "TOFU_EVAL.json").read_text())) for one in (FULL, RETAIN99))
    numbers = by_the_script(full)
    quality = ks_2samp(*(ratios(one["eval_log_forget.json"]) for one in (full, other))).pvalue
    numbers |= {"Forget Quality": float(quality), "KS Test PVal Forget": float(quality), "KS Test Forget": 0.5}
    for name, tables in (("full", full), ("retain99", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(json.dumps(tables, indent=4))
    with open(tmp_path / "full" / AGGREGATES, "w", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=[*numbers, "Method", "Submitted By"])
        writer.writeheader()
        writer.writerow({**numbers, "Method": "finetuned", "Submitted By": "who"})
    return tmp_path / "full", tmp_path / "retain99", numbers


def test_every_number_of_tofus_own_evaluation_comes_out(pair):
    model, retrained, numbers = pair
    found = read(read_log(model), read_log(retrained))
    assert {one.key for one in found.lines} == numbers.keys() - {"KS Test PVal Forget", "KS Test Forget"}
    assert found.unread == ()
    for one in found.lines:
        assert one.published == pytest.approx(numbers[one.key], rel=1e-12)
        assert not one.unlike, one
        # The script's forget ratio is arithmetic; ours, as in forget quality, is geometric.
        assert one.verdict is (Verdict.VARIANT if one.key == "Truth Ratio Forget" else Verdict.EQUAL), one


def test_without_the_aggregates_they_are_those_of_the_script(pair):
    model, _, numbers = pair
    (model / AGGREGATES).unlink()
    found = read(read_log(model / FILE))
    for one in found.lines:
        if one.key == "Forget Quality":
            continue
        assert one.published == pytest.approx(numbers[one.key], rel=1e-6), one.key
        assert one.verdict is (Verdict.VARIANT if one.key == "Truth Ratio Forget" else Verdict.EQUAL)
        assert "authors' formula" in one.note
    assert line(found, "Forget Quality").verdict is Verdict.NULL


def test_the_aggregates_are_read_as_the_evaluation_spells_them_and_as_the_script_does(pair):
    model, retrained, numbers = pair
    names = {
        f"{kind} {title}": f"{title} {'Probability' if kind == 'Prob.' else kind}"
        for _, title in SIDES.values()
        for kind in ("Prob.", "ROUGE", "Truth Ratio")
    }
    with open(model / AGGREGATES, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows([[names.get(name, name) for name in numbers], numbers.values()])
    found = read(read_log(model), read_log(retrained))
    assert found.unread == ()
    for one in found.lines:
        assert one.published == pytest.approx(numbers[one.key], rel=1e-12)
        assert "authors' formula" not in one.note


def test_the_scripts_geometric_aggregates_are_a_named_variant(pair):
    model, retrained, numbers = pair
    tables = json.loads((model / FILE).read_text())
    for name, (side, title) in SIDES.items():
        x = 1 / ratios(tables[name])
        shaped = np.minimum(x, 1 / x) if side == "forget" else np.maximum(0, 1 - x)
        numbers[f"Truth Ratio {title}"] = float(shaped.mean())
    terms = [v for key, v in numbers.items() if key.startswith(("Prob", "ROUGE", "Truth")) and "Forget" not in key]
    numbers["Model Utility"] = float(hmean(terms))
    (model / AGGREGATES).write_text(",".join(numbers) + "\n" + ",".join(map(repr, numbers.values())) + "\n")
    found = read(read_log(model), read_log(retrained))
    assert line(found, "Truth Ratio Forget").verdict is Verdict.EQUAL
    for key in ("Truth Ratio Retain", "Truth Ratio Real Authors", "Truth Ratio Real World", "Model Utility"):
        assert line(found, key).verdict is Verdict.VARIANT, key
        assert "geometric mean" in line(found, key).note


def test_forget_quality_is_computed_where_the_file_has_none(pair):
    model, retrained, numbers = pair
    (model / AGGREGATES).unlink()
    quality = line(read(read_log(model), read_log(retrained)), "Forget Quality")
    assert quality.published == pytest.approx(numbers["Forget Quality"], rel=1e-9)
    assert quality.verdict is Verdict.EQUAL and "authors' formula" in quality.note


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Prob. Retain,Prob. Retain\n0.5,0.5\n", "Prob. Retain is there twice"),
        ("Prob. Retain,Retain Probability\n0.5,0.5\n", "Retain Probability is there twice"),
        ("Prob. Retain\nhigh\n", 'Prob. Retain: "high" is not a number'),
        ("Prob. Retain,ROUGE Retain\n0.5\n", "of unequal lengths"),
        ("Prob. Retain\n", "1 lines where a line of names and one of numbers"),
        ("Prob. Retain\n0.5\n0.6\n", "3 lines where a line of names and one of numbers"),
        ("", "0 lines where"),
    ],
)
def test_aggregates_that_are_none_are_one_sentence(tmp_path, text, said):
    (tmp_path / FILE).write_text(json.dumps({"eval_log.json": {"avg_gt_loss": {"0": 0.5}}}))
    (tmp_path / AGGREGATES).write_text(text)
    with pytest.raises(TaskError) as refused:
        read_log(tmp_path)
    assert said in str(refused.value) and str(tmp_path / AGGREGATES) in str(refused.value)


def test_a_tampered_text_is_counted(pair):
    model, _, _ = pair
    tables = json.loads((model / FILE).read_text())
    tables["eval_log.json"]["generated_text"]["7"][1] = "Something else."
    tables["eval_log.json"]["truth_ratio"]["3"] *= 2
    (model / FILE).write_text(json.dumps(tables))
    found = read(read_log(model))
    assert line(found, "ROUGE Retain").unlike == 1
    assert line(found, "Truth Ratio Retain").unlike == 1


def test_the_command_puts_them_on_the_board(pair, tmp_path):
    model, retrained, _ = pair
    regrade(
        "import", "tofu", model, "--retrained", retrained, "--json", tmp_path / "out.json", "--store", tmp_path / "s"
    )
    lines = json.loads((tmp_path / "out.json").read_text())["lines"]
    assert {one["verdict"] for one in lines} == {"equal", "variant"}
    rows = Board(tmp_path / "s/board").read("measurements").to_pylist()
    assert {row["task"] for row in rows} == {"locuslab-tofu/tofu/forget01"}
    assert {row["engine"] for row in rows} == {"locuslab-tofu"}
    before = Board(tmp_path / "s/board").read("samples").num_rows
    add(Board(tmp_path / "s/board"), read(read_log(model), read_log(retrained)))
    assert Board(tmp_path / "s/board").read("samples").num_rows == before


@pytest.mark.parametrize(
    ("table", "field", "value", "said"),
    [
        (
            "eval_log.json",
            "avg_gt_loss",
            {"0": -1e5},
            "eval_log.json: avg_gt_loss: index 0: avg_loss: -100000 is no average loss",
        ),
        ("eval_log.json", "avg_gt_loss", [1.0], "avg_gt_loss: not an object by index"),
        ("eval_log_forget.json", "average_perturb_loss", {"0": []}, "index 0: avg_loss: [] is not a list"),
        ("eval_log.json", "generated_text", {"0": ["a", "b"]}, "generated_text: index 0: a list of input"),
        ("eval_log.json", "generated_text", {"0": ["a", "\ud83d", "b"]}, "U+D83D is half of a surrogate pair"),
        ("eval_log.json", None, 3, "eval_log.json: not an object of numbers by index"),
    ],
)
def test_what_is_wrong_with_tofus_log_is_one_sentence(tmp_path, table, field, value, said):
    file = tmp_path / FILE
    file.write_text(json.dumps({table: value if field is None else {field: value}}))
    with pytest.raises(TaskError) as refused:
        read(read_log(tmp_path))
    assert said in str(refused.value) and str(file) in str(refused.value)


# A retrained model's log of other examples


def of_texts(answers: list[str]) -> dict:
    return texts([(answer, "a") for answer in answers], "rougeL_recall")


def test_privleak_beside_another_forget_set_is_null_like_forget_quality(tmp_path):
    def log(size: int) -> dict:
        numbers = [0.1 * (i + 1) for i in range(size)]
        return {
            **paraphrased(numbers, [[2.0, 3.0]] * size),
            "mia_min_k": attack(numbers, numbers),
            "forget_quality": {"agg_value": 0.5},
            "privleak": {"agg_value": 3.0},
        }

    logs = {size: Log.read(put(tmp_path / str(size), log(size))) for size in (4, 6)}
    for model, other in ((4, 6), (6, 4)):
        found = open_unlearning.read(logs[model], logs[other])
        for key in ("privleak", "forget_quality"):
            assert line(found, key).ours.value is None, key
            assert "--retrained is of other examples" in line(found, key).note
    same = open_unlearning.read(logs[4], logs[4])
    assert line(same, "privleak").ours.value == 0 and line(same, "forget_quality").ours.value == 1


def test_privleak_beside_the_other_corpus_is_null(tmp_path):
    shared = {"mia_min_k": attack(*MIN_K), "privleak": {"agg_value": 3.0}}
    news, books = ({**shared, "forget_knowmem_ROUGE": of_texts([*some])} for some in (("one", "two"), ("one", "three")))
    model, other = (Log.read(put(tmp_path / name, log, "MUSE")) for name, log in (("news", news), ("books", books)))
    leak = line(open_unlearning.read(model, other), "privleak")
    assert leak.ours.value is None and "forget_knowmem_ROUGE: index 1 has another ground truth" in leak.note
    assert line(open_unlearning.read(model, model), "privleak").ours.known
