"""Facts that hold for every metric of the registry."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from suite.testing import MetricConformance
from suite.testing.metrics import BARE, IGNORANT, KNOWS
from tasks.scoring import METRICS, SUMMARIES, Estimate, score, summarise
from tasks.task import Sample

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class TestEveryMetric(MetricConformance):
    entries = METRICS.values()


def test_metrics_are_registered_under_their_names():
    assert list(METRICS) == [metric.name for metric in METRICS.values()]


@pytest.mark.parametrize("name", ["probability", "truth_ratio_geometric", "normalised_probability"])
def test_a_model_that_computes_nan_has_no_score(name):
    broken = replace(KNOWS, token_logprobs=(math.nan, -1.0, -1.0), choice_logprobs=(math.nan, -1.0, -1.0))
    assert score(name, [broken, KNOWS]).value is None


def test_utility_takes_the_best_of_several_answers_as_well():
    """Its ROUGE is that of the metric: half the words in the best of two answers, none in the first."""
    short = replace(KNOWS, generated="none", sampled=("none", "Ada was born"))
    tables = [[KNOWS], [short], [KNOWS], [KNOWS], [KNOWS], [KNOWS], [KNOWS]]
    plain = [[replace(KNOWS, generated="Ada was born")] if table == [short] else table for table in tables]
    assert summarise("model_utility_geometric", tables) == summarise("model_utility_geometric", plain)
    assert summarise("model_utility_geometric", tables).value > 0


def test_an_unknown_metric_is_refused():
    with pytest.raises(KeyError):
        score("rougel", [KNOWS])


every_summary = pytest.mark.parametrize("name", SUMMARIES)


def tables_of(name: str, *samples: Sample) -> list[list[Sample]]:
    return [list(samples) for _ in range(SUMMARIES[name].tables)]


def estimate_of(name: str, model: list[list[Sample]]) -> Estimate:
    return summarise(name, model, model if SUMMARIES[name].against else None)


@every_summary
def test_a_summary_is_registered_under_its_name_with_its_source(name):
    assert SUMMARIES[name].name == name
    assert SUMMARIES[name].source
    assert SUMMARIES[name].against in (None, "retrained", "target", "unattacked")
    assert name not in METRICS  # both stand in one column


@every_summary
def test_a_summary_of_all_that_it_reads_is_known(name):
    estimate = estimate_of(name, tables_of(name, KNOWS, IGNORANT))
    assert estimate.known
    assert math.isfinite(estimate.value)
    assert estimate.n in (2, 4)  # items, or texts of both sets


@every_summary
def test_a_summary_without_its_probes_or_anchor_is_null(name):
    tables = tables_of(name, KNOWS, IGNORANT)
    assert f"reads {len(tables)} probes" in summarise(name, tables[1:], tables).reason
    if SUMMARIES[name].against:
        assert summarise(name, tables, None).reason == f"no {SUMMARIES[name].against} model was measured"
        assert summarise(name, tables, []).reason == f"no {SUMMARIES[name].against} model was measured"
        assert f"reads {len(tables)} probes of the" in summarise(name, tables, [*tables, []]).reason


@every_summary
def test_a_summary_of_empty_tables_is_null(name):
    assert estimate_of(name, tables_of(name)).reason == "no examples"


@every_summary
def test_a_summary_of_a_sample_that_lacks_what_it_reads_names_the_sample(name):
    estimate = estimate_of(name, tables_of(name, KNOWS, BARE))
    assert estimate.value is None
    assert "bare" in estimate.reason


@pytest.mark.parametrize("name", [name for name in SUMMARIES if name not in ("identical_outputs", "unchanged_answers")])
def test_a_summary_of_a_model_that_computes_nan_is_null(name):
    broken = replace(
        KNOWS,
        item="broken",
        token_logprobs=(math.nan,) * 3,
        choice_logprobs=(math.nan,) * 3,
        scalars=(("gradient_norm", math.nan), ("gradient_norm_but_last", math.nan)),
    )
    assert estimate_of(name, tables_of(name, KNOWS, broken)).reason == "a value is not finite"


def test_an_unknown_summary_is_refused():
    with pytest.raises(KeyError):
        summarise("auc", [])


@pytest.mark.parametrize("name", [*METRICS, *SUMMARIES])
def test_every_number_has_its_line_in_the_docs(name):
    assert re.search(rf"^\| `{name}` \|", DOCS.read_text(), re.M), name


def test_every_test_that_the_docs_name_is_there():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCS.read_text())
    assert len(named) >= 6
    for file, test in named:
        assert f"def {test}(" in next(DOCS.parents[1].glob(f"tests/*/{file}")).read_text(), f"{file}::{test}"


@pytest.mark.parametrize(("ratio", "forget", "retain"), [(0.25, 0.25, 0.75), (1.0, 1.0, 0.0), (4.0, 0.25, 0.0)])
def test_aggregates_of_the_truth_ratio(ratio, forget, retain):
    sample = replace(KNOWS, choice_logprobs=(math.log(0.1), math.log(0.1 * ratio)), choice_lengths=(1, 1))
    assert METRICS["truth_ratio_geometric_forget"].compute(sample) == pytest.approx(forget)
    assert METRICS["truth_ratio_geometric_retain"].compute(sample) == pytest.approx(retain)
    assert METRICS["truth_ratio_arithmetic_retain"].compute(sample) == pytest.approx(retain)


def test_a_certain_model_has_a_forget_ratio_of_zero():
    sample = replace(KNOWS, choice_logprobs=(0.0, -math.inf), choice_lengths=(1, 1))
    assert METRICS["truth_ratio_geometric_forget"].compute(sample) == 0.0
