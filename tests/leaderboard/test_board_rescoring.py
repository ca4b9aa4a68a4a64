"""Streamed rescoring against `score()` on the same samples, whatever the files hold and however they are cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.board import rescoring, samples, schema
from leaderboard.board.files import BoardError
from leaderboard.board.rescoring import rescore
from leaderboard.board.samples import count_rows, read_samples
from tasks.scoring import METRICS, Estimate, score
from tasks.task import ProbeKind, Sample

METRICS_OF = {kind.value: [name for name, metric in METRICS.items() if metric.kind is kind] for kind in ProbeKind}
NUMBER, TEXT = st.floats(-30, 0), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)

Tables = Mapping[tuple[str, str], Sequence[Sample]]


def write(path: Path, tables: Tables) -> Path:
    rows = [
        {"samples": key, "probe": probe, **asdict(sample), "scalars": list(sample.scalars) or None}
        for (key, probe), table in tables.items()
        for sample in table
    ]
    pq.write_table(schema.to_arrow("samples", rows), path)
    return path


@st.composite
def answered(draw) -> Sample:
    n = draw(st.integers(0, 6))
    columns = [tuple(draw(st.lists(NUMBER, min_size=n, max_size=n))) for _ in range(3)]
    correct = tuple(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scalars = draw(st.sampled_from([(), (("gradient_norm", 0.5),), (("other", 1.0), ("gradient_norm", 2.0))]))
    return Sample(
        "", draw(TEXT), token_logprobs=columns[0], token_correct=correct,
        vocab_means=draw(st.sampled_from([columns[1], None])), vocab_variances=columns[2], scalars=scalars,
    )  # fmt: skip


@st.composite
def chosen(draw) -> Sample:
    n = draw(st.integers(1, 5))
    logprobs = draw(st.lists(NUMBER, min_size=n, max_size=n))
    lengths = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    correct = draw(st.integers(0, n - 1))
    return Sample("", "x", choice_logprobs=tuple(logprobs), choice_lengths=tuple(lengths), correct=correct)


SEVERAL = st.lists(TEXT, min_size=1, max_size=3).map(tuple)
GENERATED = st.builds(Sample, st.just(""), TEXT, st.none() | TEXT, sampled=st.none() | SEVERAL)


def numbered(samples_: st.SearchStrategy[Sample]) -> st.SearchStrategy[list[Sample]]:
    return st.lists(samples_, max_size=7).map(lambda some: [replace(s, item=f"item{i}") for i, s in enumerate(some)])


TABLES = st.fixed_dictionaries(
    {
        ("first", "logprob"): numbered(answered()),
        ("second", "logprob"): numbered(answered()),
        ("first", "choice"): numbered(chosen()),
        ("first", "generate"): numbered(GENERATED),
    }
)


@given(TABLES, st.integers(1, 9))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_are_those_of_score_to_the_last_bit(tmp_path, monkeypatch, tables, rows):
    monkeypatch.setattr(samples, "ROWS", rows)  # so that batches end in the middle of a probe
    found = rescore([write(tmp_path / "samples.parquet", tables)], METRICS_OF, processes=1)
    expected = {
        (key, probe, metric): score(metric, table)
        for (key, probe), table in tables.items()
        if table
        for metric in METRICS_OF[probe]
    }
    assert found == expected


@given(TABLES, st.integers(1, 9))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_samples_are_read_back_as_they_were_written(tmp_path, monkeypatch, tables, rows):
    monkeypatch.setattr(samples, "ROWS", rows)
    path = write(tmp_path / "samples.parquet", tables)
    read: dict[tuple[str, str], list[Sample]] = {key: [] for key in tables}
    for _, key, sample in read_samples(path, list(METRICS_OF), 0, count_rows(path)):
        read[key].append(sample)
    assert read == {key: list(table) for key, table in tables.items()}


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 41), st.integers(0, 41))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stretch_is_these_rows_wherever_batches_and_row_groups_end(
    tmp_path, monkeypatch, n, rows, group, start, stop
):
    monkeypatch.setattr(samples, "ROWS", rows)
    tables = [Sample(f"item{i}", "x", token_logprobs=(float(i),) * (i % 4), scalars=(("n", i),)) for i in range(n)]
    path = write(tmp_path / "samples.parquet", {("a", "odd" if n % 3 else "even"): tables})
    pq.write_table(pq.read_table(path), path, row_group_size=group)
    found = list(read_samples(path, ["odd"], start, stop))
    assert found == [(i, ("a", "odd"), tables[i]) for i in range(start, min(stop, n)) if n % 3]


def texts(n: int, start: int = 0) -> list[Sample]:
    return [Sample(f"item{i}", f"one two {i % 7}", generated=f"one {i % 5} two") for i in range(start, start + n)]


@pytest.fixture
def small(monkeypatch):
    """Stretches and batches of a few rows, so that a few dozen rows use several processes."""
    monkeypatch.setattr(rescoring, "SHARE", 10)
    monkeypatch.setattr(rescoring, "BATCH", 4)


def counted(files: Sequence[Tables], metrics_of: Mapping[str, Sequence[str]]) -> dict[tuple[str, str, str], Estimate]:
    """The first sample of each key, all in memory, through `score`."""
    first: dict[tuple[str, str], dict[str, Sample]] = {}
    for tables in files:
        for key, table in tables.items():
            for sample in table:
                first.setdefault(key, {}).setdefault(sample.item, sample)
    return {(*key, m): score(m, table.values()) for key, table in first.items() for m in metrics_of[key[1]]}


def several() -> list[Tables]:
    """Two evaluations in three files: rows again with other numbers, and rows that lack some, also of earlier items."""
    other_texts = [replace(s, generated="something else") for s in texts(30)]
    mute = [replace(s, generated=None) for s in texts(20, 55)]
    logprobs = [Sample(f"item{i}", "x", token_logprobs=(-0.1 * i, -1 / (i + 1))) for i in range(60)]
    normed = [replace(s, scalars=(("gradient_norm", s.token_logprobs[0]),)) for s in logprobs]
    return [
        {("a", "generate"): texts(40), ("a", "logprob"): [*normed[:20], *logprobs[:30]]},
        {
            ("a", "generate"): [*other_texts, *texts(20, 35)],
            ("b", "logprob"): [*normed[:37], logprobs[38], logprobs[37]],
        },
        {("a", "generate"): mute, ("b", "generate"): [*texts(3), *mute, *other_texts], ("b", "logprob"): logprobs},
    ]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_numbers_and_the_same_reasons(tmp_path, small, processes):
    metrics_of = {"generate": ["rougeL_f1", "repetition"], "logprob": METRICS_OF["logprob"]}
    paths = [write(tmp_path / f"{i}.parquet", tables) for i, tables in enumerate(several())]
    pq.write_table(pq.read_table(paths[1]), paths[1], row_group_size=7)
    found = rescore(paths, metrics_of, processes)
    assert found == counted(several(), metrics_of)
    assert found["a", "generate", "repetition"].reason == "sample item55 lacks what repetition reads"
    assert found["a", "logprob", "gradient_norm"].reason == "sample item20 lacks what gradient_norm reads"
    assert found["b", "logprob", "gradient_norm"].reason == "sample item38 lacks what gradient_norm reads"
    assert found["a", "logprob", "loss"].n == 30


def test_an_evaluation_may_be_spread_over_files_and_a_row_counts_once(tmp_path):
    whole = texts(9)
    parts = [write(tmp_path / f"{i}.parquet", {("a", "generate"): whole[3 * i : 3 * i + 4]}) for i in range(3)]
    found = rescore(parts, {"generate": ["rougeL_recall"]}, processes=1)
    assert found == {("a", "generate", "rougeL_recall"): score("rougeL_recall", whole)}


def test_other_probes_are_passed_over(tmp_path):
    path = write(tmp_path / "s.parquet", {("a", "wanted"): texts(2), ("a", "other"): [Sample("bad", "x")]})
    found = rescore([path], {"wanted": ["rougeL_recall"], "absent": ["accuracy"]})
    assert set(found) == {("a", "wanted", "rougeL_recall")}


def test_columns_that_an_older_file_lacks_are_null(tmp_path):
    sample = Sample("one", "x", token_logprobs=(-1.0, -2.0))
    path = write(tmp_path / "s.parquet", {("a", "qa"): [sample]})
    table = pq.read_table(path)
    kept = table.drop_columns(["vocab_means", "vocab_variances", "scalars", "token_correct"])
    pq.write_table(kept, path)
    found = rescore([path], {"qa": ["loss", "min_k_plus_plus_40"]})
    assert found["a", "qa", "loss"].value == 1.5
    assert found["a", "qa", "min_k_plus_plus_40"].reason == "sample one lacks what min_k_plus_plus_40 reads"


@pytest.mark.parametrize(
    ("broken", "metric"),
    [
        (Sample("b", "x", choice_logprobs=(-1.0, -2.0), choice_lengths=(1,), correct=0), "truth_ratio_geometric"),
        (Sample("b", "x", choice_logprobs=(-1.0, -2.0), choice_lengths=(1, 0), correct=0), "normalised_probability"),
        (Sample("b", "x", choice_logprobs=(-1.0, -2.0), choice_lengths=(1, 1), correct=5), "truth_ratio_arithmetic"),
        (Sample("b", "x", token_logprobs=(-1.0, None)), "loss"),
    ],
)
def test_a_row_whose_columns_do_not_fit_is_named(tmp_path, monkeypatch, broken, metric):
    monkeypatch.setattr(samples, "ROWS", 2)
    fine = Sample("f", "x", token_logprobs=(-1.0,), choice_logprobs=(-1.0, -2.0), choice_lengths=(1, 1), correct=0)
    path = write(tmp_path / "s.parquet", {("a", "skipped"): [fine] * 3, ("a", "p"): [fine, broken]})
    with pytest.raises(BoardError, match=r"s\.parquet: row 4: item b cannot be scored .*What to do"):
        rescore([path], {"p": [metric]})


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_row_that_counts_and_cannot_be_scored_is_named_by_any_process(tmp_path, small, processes):
    fine = [Sample(f"item{i}", "x", token_logprobs=(-1.0,)) for i in range(30)]
    bad = [replace(s, token_logprobs=(None,)) for s in fine]
    first = write(tmp_path / "0.parquet", {("a", "p"): fine[:20]})
    tables = {("b", "p"): fine[:15], ("a", "p"): [*bad[10:25], fine[25]], ("b", "q"): bad}
    second = write(tmp_path / "1.parquet", tables)
    again = write(tmp_path / "2.parquet", {("a", "p"): bad[:20]})
    with pytest.raises(BoardError, match=r"1\.parquet: row 25: item item20 cannot be scored"):
        rescore([first, again, second], {"p": ["loss"], "q": ["loss"]}, processes)


def test_files_that_are_not_samples_are_refused(tmp_path):
    for content in (b"PAR1 cut short", b""):
        (tmp_path / "s.parquet").write_bytes(content)
        with pytest.raises(BoardError, match="cut short"):
            rescore([tmp_path / "s.parquet"], {"p": ["loss"]})
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(BoardError, match="not a file of the table samples"):
        rescore([tmp_path / "other.parquet"], {"p": ["loss"]})
    with pytest.raises(BoardError, match="no such file"):
        rescore([tmp_path / "absent.parquet"], {"p": ["loss"]})


def test_an_unknown_metric_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(KeyError, match="rouge"):
        rescore([tmp_path / "absent.parquet"], {"p": ["rouge"]})


def test_rescoring_needs_no_torch():
    code = "import sys, leaderboard.board.rescoring; assert not {'torch', 'ray', 'suite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
