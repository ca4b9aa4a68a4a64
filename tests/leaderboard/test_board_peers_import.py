"""Logs of other suites as rows on the board, through the command too; logs that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard.board.store import Board
from leaderboard.peers.logs import Log
from leaderboard.peers.open_unlearning import read
from leaderboard.peers.rows import PEER, add
from leaderboard.ranking.rank import rank
from tasks.scoring import score
from tasks.task import Sample, TaskError
from tests.support.open_unlearning_logs import MIN_K, attack, line, paraphrased, put


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
    for folder, complaint in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "neither TOFU_EVAL.json")):
        with pytest.raises(TaskError, match=complaint):
            Log.read(folder)
    some = {"any": {"agg_value": 0.5}}
    for benchmark in ("TOFU", "MUSE"):
        put(tmp_path, some, benchmark)
    with pytest.raises(TaskError, match="several"):
        Log.read(tmp_path)
    model, other = put(tmp_path / "a", some), put(tmp_path / "b", some, "MUSE")
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
    from tests.support.board_rows import TASK

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
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_command(pair, tmp_path, capsys, monkeypatch):
    out, store = tmp_path / "out/table.json", tmp_path / "store"
    code, printed, _ = regrade(capsys, monkeypatch, pair[0], "--retrained", pair[1], "--json", out, "--store", store)
    assert code == 0
    assert "forget_truth_ratio" in printed
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
