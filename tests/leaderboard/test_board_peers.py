"""open-unlearning's logs, read and scored: published logs, and small ones made up here by its formulas, in numpy."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp

from leaderboard.board.store import Board
from leaderboard.peers.line import Verdict
from leaderboard.peers.logs import Log
from leaderboard.peers.open_unlearning import Imported, read
from leaderboard.peers.rows import PEER, add
from leaderboard.ranking.rank import rank
from tasks.scoring import score
from tasks.task import Sample, TaskError

PUBLISHED = Path("openunlearning_eval_logs")
FULL = PUBLISHED / "tofu_Llama-3.2-1B-Instruct_full/evals_forget01"
RETAIN99 = PUBLISHED / "tofu_Llama-3.2-1B-Instruct_retain99"

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
    for i, (truth, said) in enumerate(pairs):
        found = SCORER.score(truth, said)
        rows[str(i)] = {
            "rouge1_recall": found["rouge1"].recall,
            "rougeL_recall": found["rougeL"].recall,
            "rougeL_f1": found["rougeL"].fmeasure,
            "input": "q",
            "ground_truth": truth,
            "generation": said,
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
    """Published code adds 1e-10 under the truth ratio: a model that finds everything unlikely looks truthful."""
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
    said = texts([("a b c", "a b"), ("d e", "d e f")], "rougeL_recall")
    metrics, terms = {}, [said["agg_value"]] * 3
    for side in ("retain", "ra", "wf"):
        right, wrong = RIGHT[:2], WRONG[:2]
        key = "retain_Q_A_PARA_Prob" if side == "retain" else f"{side}_Q_A_Prob"
        pert = {str(i): {"prob": np.exp(-np.array(row)).tolist(), "avg_loss": row} for i, row in enumerate(wrong)}
        metrics[key] = losses(right)
        metrics[f"{side}_Q_A_PERT_Prob"] = {"agg_value": 0.0, "value_by_index": pert}
        metrics[f"{side}_Q_A_ROUGE"] = said
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


MIN_K = ([1.0, 2.0, 3.0], [2.5, 3.5, 1.5])


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
    assert leak.verdict is Verdict.TAKEN
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
    taken = line(read(Log.read(put(tmp_path, metrics))), "extraction_strength")
    assert (taken.metric, taken.verdict, taken.ours.n) == ("extraction_strength_published", Verdict.TAKEN, 2)
    assert "1/n" in taken.note


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


def broken(**changes) -> dict:
    metrics = paraphrased()
    for name, change in changes.items():
        change(metrics[name]["value_by_index"])
    return metrics


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("{", ["TOFU_EVAL.json: damaged", "line 1"]),
        ("[]", ["TOFU_EVAL.json: not an object"]),
        ({"forget_Q_A_Prob": 0.5}, ["forget_Q_A_Prob: not an object"]),
        ({"forget_Q_A_Prob": {"agg_value": "0.5"}}, ["forget_Q_A_Prob: agg_value: '0.5' is not a number"]),
        ({"forget_Q_A_Prob": {"agg_value": 0.5}}, ["forget_Q_A_Prob: value_by_index is missing"]),
        ({"mia_loss": {"agg_value": 1, "forget": {}}}, ["mia_loss.forget: value_by_index is missing"]),
        (
            broken(forget_Q_A_PERT_Prob=lambda rows: rows.pop("2")),
            ["forget_Q_A_PERT_Prob: index 2 is missing", "forget_Q_A_PARA_Prob", "3 rows against 4"],
        ),
        (broken(forget_Q_A_PARA_Prob=lambda rows: rows["1"].pop("avg_loss")), ["index 1: avg_loss is missing"]),
        (broken(forget_Q_A_PARA_Prob=lambda rows: rows["1"].update(avg_loss=True)), ["index 1: avg_loss: True"]),
        (broken(forget_Q_A_PERT_Prob=lambda rows: rows["0"].update(avg_loss=1.0)), ["index 0: avg_loss: 1.0 is not"]),
        (
            {"forget_Q_A_ROUGE": {"agg_value": 1, "value_by_index": {"7": {"generation": 3, "ground_truth": "a"}}}},
            ["forget_Q_A_ROUGE: index 7: generation: 3 is not text"],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_log_is_named(tmp_path, metrics, said):
    file = tmp_path / "TOFU_EVAL.json"
    file.write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    with pytest.raises(TaskError) as refused:
        read(Log.read(tmp_path))
    assert str(file) in str(refused.value)
    assert all(word in str(refused.value) for word in said), refused.value


def test_a_folder_without_a_log_is_refused(tmp_path):
    for folder, said in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "neither TOFU_EVAL.json")):
        with pytest.raises(TaskError, match=said):
            Log.read(folder)
    for benchmark in ("TOFU", "MUSE"):
        put(tmp_path, {}, benchmark)
    with pytest.raises(TaskError, match="several"):
        Log.read(tmp_path)
    model, other = put(tmp_path / "a", {}), put(tmp_path / "b", {}, "MUSE")
    with pytest.raises(TaskError, match="a log of MUSE"):
        read(Log.read(model), Log.read(other))


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Folders of a model's log and of a retrained one's."""
    shared = {"mia_loss": attack(*MIN_K), "mia_min_k": attack(*MIN_K), "forget_quality": {"agg_value": None}}
    return put(tmp_path / "full/evals", {**paraphrased(), **shared}), put(
        tmp_path / "retain", {**paraphrased([0.1, 0.2, 0.1, 0.3]), **shared}
    )


def test_importing_again_changes_nothing(pair, tmp_path):
    board = Board(tmp_path / "board")
    first = add(board, read(*map(Log.read, pair)))
    before = {table: board.read(table) for table in ("trials", "measurements", "samples")}
    files = sorted((tmp_path / "board").rglob("*"))
    elsewhere = put(tmp_path / "elsewhere", json.loads((pair[0] / "TOFU_EVAL.json").read_text()))
    assert add(board, read(Log.read(elsewhere), Log.read(pair[1]))) == first
    assert sorted((tmp_path / "board").rglob("*")) == files
    assert all(board.read(table).equals(rows) for table, rows in before.items())
    assert not board.broken()


def test_rows_say_where_they_come_from(pair, tmp_path):
    board = Board(tmp_path / "board")
    trial = add(board, read(*map(Log.read, pair)))
    (row,) = board.read("trials").to_pylist()
    assert (row["trial"], row["task"], row["source"]) == (trial, "open-unlearning/tofu", "full/evals")
    assert row["objective"] is row["grade"] is row["seed"] is None
    rows = board.read("measurements").to_pylist()
    assert {(r["subject"], r["trial"]) for r in rows} == {("unlearned", trial), ("retrained", row["anchors"])}
    assert {(r["engine"], r["split"], r["attack"]) for r in rows} == {("open-unlearning", "all", "none")}
    quality = [r for r in rows if r["metric"] == "forget_quality"]
    assert [(r["subject"], r["status"]) for r in quality] == [("unlearned", "ok")]
    with_and_without = add(board, read(Log.read(pair[0])))
    assert with_and_without != trial, "what was compared with is part of what was measured"


def test_the_samples_on_the_board_give_the_numbers_again(pair, tmp_path):
    board = Board(tmp_path / "board")
    found = read(Log.read(pair[0]))
    add(board, found)
    rows = board.read("samples", {"probe": "forget_paraphrase"}).to_pylist()
    samples = [
        Sample(
            r["item"], r["reference"], choice_logprobs=tuple(r["choice_logprobs"]),
            choice_lengths=tuple(r["choice_lengths"]), correct=r["correct"],
        )
        for r in rows
    ]  # fmt: skip
    ratio = line(found, "forget_truth_ratio")
    assert score(ratio.metric, samples).value == ratio.ours.value
    members = board.read("samples", {"probe": "forget_membership"}).to_pylist()
    assert [dict(r["scalars"]) for r in members] == [{"mia_min_k": value} for value in MIN_K[0]]
    assert [r["token_logprobs"] for r in members] == [[-value] for value in MIN_K[0]]


def test_imported_rows_are_never_ranked(pair, tmp_path):
    from board_rows import TASK

    board = Board(tmp_path / "board")
    add(board, read(*map(Log.read, pair)))
    assert rank(board, TASK.name).entries == ()
    found = board.read("measurements").to_pylist()
    assert {row["headline"] for row in found} == {None}
    # What a log does not tell of the engine is unknown, and not `False`.
    assert {(row["engine"], row["engine_version"], row["batch_invariant"]) for row in found} == {(PEER, None, None)}


def regrade(capsys, monkeypatch, *words: object) -> tuple[int, str, str]:
    from suite.cli import main

    monkeypatch.setattr(sys, "argv", ["regrade", "import", "open-unlearning", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(pair, tmp_path, capsys, monkeypatch):
    out, store = tmp_path / "out/table.json", tmp_path / "store"
    code, said, _ = regrade(capsys, monkeypatch, pair[0], "--retrained", pair[1], "--json", out, "--store", store)
    assert code == 0
    assert "forget_truth_ratio" in said
    written = json.loads(out.read_text())
    assert {row["key"] for row in written["lines"]} == json.loads((pair[0] / "TOFU_EVAL.json").read_text()).keys()
    assert written["not_read"] == []
    assert Board(store / "board").sql("SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 1}]
    assert sorted(path.name for path in out.parent.iterdir()) == ["table.json"]


def test_the_command_refuses_with_exit_code_2_and_writes_nothing(pair, tmp_path, capsys, monkeypatch):
    out, store = tmp_path / "table.json", tmp_path / "store"
    (pair[1] / "TOFU_EVAL.json").write_text('{"forget_Q_A_Prob": ')
    for words in ([tmp_path / "nowhere"], [pair[0], "--retrained", pair[1]]):
        code, _, error = regrade(capsys, monkeypatch, *words, "--json", out, "--store", store)
        assert code == 2
        assert error.startswith(f"regrade: {words[-1]}")
        assert not out.exists()
        assert not store.exists()
    code, _, error = regrade(capsys, monkeypatch, pair[0], "--json", pair[0])
    assert (code, "cannot be written" in error) == (2, True)


def test_reading_logs_needs_neither_torch_nor_ray():
    code = "import leaderboard.peers.rows, sys; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
