"""What is refused of any log: values that cannot be what they should, and files of another kind."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from leaderboard.peers import log_file, open_unlearning
from leaderboard.peers.line import Verdict
from leaderboard.peers.logs import LONGEST, Log
from leaderboard.peers.tofu import FILE, read_log
from tasks.task import TaskError
from tests.support.open_unlearning_logs import line, paraphrased, put, texts

ODD = {
    "negative": ("-1e5", "index 0: avg_loss: -100000 is no average loss"),
    "minus infinity": ("-Infinity", "index 0: avg_loss: -inf is no average loss"),
    "huge": ("1e300", "index 0: avg_loss: 1e+300 is no average loss"),
    "long": ("1" * 5000, "damaged (a number of 5,000 digits)"),
    "whole and too large": ("1" * 400, "index 0: avg_loss: larger than any float"),
    "too large": ("1e400", "index 0: avg_loss: larger than any float"),
    "too small": ("-1e400", "index 0: avg_loss: larger than any float"),
    "true": ("true", "index 0: avg_loss: True is not a number"),
    "text": ('"0.5"', "index 0: avg_loss: '0.5' is not a number"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_loss_that_cannot_be_one_is_refused_by_entry(tmp_path, case):
    value, said = ODD[case]
    entry = '{"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5, "avg_loss": %s}}}'
    (tmp_path / "TOFU_EVAL.json").write_text('{"forget_Q_A_Prob": %s}' % (entry % value))
    with pytest.raises(TaskError) as refused:
        open_unlearning.read(Log.read(tmp_path))
    assert said in str(refused.value) and "TOFU_EVAL.json" in str(refused.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
@pytest.mark.parametrize("metric", ["forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"])
def test_a_loss_that_is_no_number_leaves_a_reason_with_its_index(tmp_path, metric, value):
    metrics = paraphrased()
    row = metrics[metric]["value_by_index"]["2"]
    row["avg_loss"] = float(value) if metric.endswith("PARA_Prob") else [float(value)] * 2
    metrics["forget_quality"] = {"agg_value": 0.5}
    found = open_unlearning.read(Log.read(put(tmp_path, metrics)), Log.read(put(tmp_path / "b", paraphrased())))
    ratio = line(found, "forget_truth_ratio")
    assert ratio.ours.known or "index 2" in ratio.note
    if value == "NaN":
        assert not ratio.ours.known and not line(found, "forget_quality").ours.known
    assert json.dumps([one.as_json() for one in found.lines], allow_nan=False)


def test_files_that_are_no_log_are_one_sentence(tmp_path, monkeypatch):
    file = tmp_path / "TOFU_EVAL.json"

    def said() -> str:
        with pytest.raises(TaskError) as refused:
            Log.read(tmp_path)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    file.write_text(json.dumps(paraphrased())[:-40])
    assert "damaged" in said()
    file.write_text("[" * 200_000)
    assert "within each other" in said()
    file.write_bytes(b'{"a": "\xff"}')
    assert "not UTF-8" in said()
    file.write_text('{"a": {}, "a": {}}')
    assert 'the key "a" is there twice' in said()
    file.write_text('{"\\ud83d": {}}')
    assert "U+D83D" in said()
    monkeypatch.setattr(log_file, "LARGEST", 1 << 20)
    file.write_text(json.dumps({"a": {"b": "x" * (1 << 20)}}))
    assert "larger than 1 MiB" in said()
    file.unlink()
    file.mkdir()
    assert f"{file}: a folder" in said()
    file.rmdir()
    os.mkfifo(file)
    assert f"{file}: a pipe" in said()
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    assert "not readable (No such file" in said()


OTHER_FILES = {
    "UTF-16": (lambda text: text.encode("utf-16"), "UTF-16 or UTF-32, and UTF-8 is expected"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), "UTF-16 or UTF-32"),
    "UTF-32": (lambda text: text.encode("utf-32"), "UTF-16 or UTF-32"),
    "Latin-1": (lambda text: text.replace("0", "\xe9", 1).encode("latin-1"), "the byte 0xe9 is not UTF-8"),
    "half a pair in bytes": (
        lambda text: text.encode().replace(b"0", b"\xed\xa0\xbd", 1),
        "the byte 0xed is not UTF-8",
    ),
    "gzip": (lambda text: gzip.compress(text.encode()), "compressed with gzip. Unpack it first"),
    "zip": (lambda text: b"PK\x03\x04" + text.encode(), "a zip archive. Unpack it first"),
    "LFS": (lambda text: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "empty": (lambda text: b"", "empty. Copy it again"),
    "blank": (lambda text: b" \n", "empty. Copy it again"),
    "truncated": (lambda text: text.encode()[:-1], "damaged ("),
    "two of them": (lambda text: 2 * text.encode(), "damaged (Extra data"),
    "an array": (lambda text: f"[{text}]".encode(), "not an object of metrics"),
    "nothing in it": (lambda text: b"{}", " in it. "),
}


@pytest.mark.parametrize("case", OTHER_FILES)
@pytest.mark.parametrize(
    ("name", "content", "opened"),
    [
        ("TOFU_EVAL.json", {"forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": None}}}, Log.read),
        (FILE, {"eval_log.json": {"avg_gt_loss": {"0": 0.5}}}, read_log),
    ],
)
def test_another_kind_of_file_is_one_sentence_and_a_mark_at_the_beginning_is_none(
    tmp_path, case, name, content, opened
):
    text, (written, said) = json.dumps(content), OTHER_FILES[case]
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert opened(tmp_path).metrics
    (tmp_path / name).write_bytes(written(text))
    with pytest.raises(TaskError) as refused:
        opened(tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("odd", [-1e5, 1e300, "half", True, [], [None], "0.5"])
@pytest.mark.parametrize("kind", ["float", "text", "several"])
@pytest.mark.parametrize("place", [0, 3])
def test_one_odd_value_in_a_column_is_named_wherever_it_stands(tmp_path, odd, kind, place):
    """Columns are checked as a whole: beside sound values, missing rows, NaN and infinity."""
    metric, field, sound = {
        "float": ("forget_Q_A_Prob", "avg_loss", [0.5, 1.5, float("nan"), 0.1, float("inf")]),
        "several": ("forget_Q_A_PERT_Prob", "avg_loss", [[0.5, 1.0], [0.1], [float("nan"), 2.0], [3.0, 1.0], [0.5]]),
        "text": ("forget_Q_A_ROUGE", "generation", ["a", "é", "", "b", "c"]),
    }[kind]
    odd = "\ud83d" if odd == "half" else odd
    if isinstance(odd, str) and odd == "0.5" and kind == "text":
        odd = 0.5
    if kind == "several" and isinstance(odd, float):
        odd = [0.5, odd]
    rows = {str(i): {field: value, "ground_truth": "a"} for i, value in enumerate(sound)} | {"9": None}

    def log() -> Log:
        return Log.read(put(tmp_path, {metric: {"agg_value": 0.5, "value_by_index": rows}}))

    types = {"float": float, "several": tuple, "text": str}
    whole = log().rows(metric, field, types[kind])
    assert repr(list(whole.values())) == repr([*(map(tuple, sound) if kind == "several" else sound), None])
    rows[str(place)][field] = odd
    with pytest.raises(TaskError, match=f"{metric}: index {place}: {field}: "):
        log().rows(metric, field, types[kind])


def test_a_text_without_end_and_half_a_character_are_refused(tmp_path):
    for text, said in (("a " * LONGEST, "are compared at most"), ("\ude00", "U+DE00 is half of a surrogate pair")):
        metrics = {"forget_Q_A_ROUGE": texts([("a", "b")], "rougeL_recall")}
        metrics["forget_Q_A_ROUGE"]["value_by_index"]["0"]["generation"] = text
        with pytest.raises(TaskError, match="forget_Q_A_ROUGE: index 0: generation: .*" + said.replace("+", r"\+")):
            open_unlearning.read(Log.read(put(tmp_path, metrics)))


def test_answers_of_another_script_are_null_and_the_published_zero_is_explained(tmp_path):
    metrics = {
        "forget_Q_A_ROUGE": texts([("Маяк построил Иван.", "Маяк построил Иван."), ("a b", "a b")], "rougeL_recall")
    }
    rouge = line(open_unlearning.read(Log.read(put(tmp_path, metrics))), "forget_Q_A_ROUGE")
    assert (rouge.published, rouge.ours.value) == (0.5, None)
    assert (rouge.verdict, rouge.unlike) == (Verdict.VARIANT, 0)
    assert "rougeL_recall_unicode" in rouge.note and "a to z" in rouge.note
