"""Models whose weights or logits are NaN or infinite: every number about them is null with a reason, none is 0."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leaderboard.board.schema import Status
from suite.config.errors import CheckpointError
from suite.engines import Job, TransformersEngine
from suite.models.checkpoints import TensorCheckpoint
from suite.models.loading import resolve_model
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.testing.scene import UP_PROJ, spoilt
from suite.trials.run import run_trial
from tasks.scoring import METRICS, SUMMARIES, score, summarise
from tasks.task import Need, Probe, ProbeKind, Sampling, Split, Subset
from tests.support.command import regrade
from tests.support.hostile_folders import WEIGHTS, adapter_folder, copied
from tests.support.small import SMALL

CPU = torch.device("cpu")
HEAD = "lm_head.weight"


def spoil(folder: Path, kind: str = "overflow") -> Path:
    save_file(spoilt(kind, load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


KINDS = ("nan", "inf", "-inf", "overflow")


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def bad(scene, kind) -> TensorCheckpoint:
    checkpoint = scene[0].checkpoint
    return TensorCheckpoint(spoilt(kind, checkpoint.state()), checkpoint.path)


def every_metric(items) -> tuple[Probe, ...]:
    """A probe of each kind, with all metrics that read it."""
    common = {"subset": Subset.FORGET, "split": Split.TEST, "items": items}
    metrics = {kind: tuple(m.name for m in METRICS.values() if m.kind is kind) for kind in ProbeKind}
    logprob = {"kind": ProbeKind.LOGPROB, "metrics": metrics[ProbeKind.LOGPROB]}
    generate = {"kind": ProbeKind.GENERATE, "metrics": metrics[ProbeKind.GENERATE], "max_new_tokens": 8}
    return (
        Probe("logprob", **common, **logprob, needs=(Need.VOCABULARY, Need.GRADIENT_NORM, Need.GRADIENT_NORM_BUT_LAST)),
        Probe("choice", **common, kind=ProbeKind.CHOICE, metrics=metrics[ProbeKind.CHOICE]),
        Probe("generate", **common, **generate),
        Probe("sample", **common, **generate, sampling=Sampling(2, 1.0)),
    )


@pytest.fixture
def questions(scene) -> tuple[Probe, ...]:
    items = next(p for p in scene[0].probes if p.kind is ProbeKind.CHOICE).items[:4]
    return every_metric(items)


def measured(engine, checkpoint, probes):
    (found,) = engine.submit([Job("x", checkpoint, probes)])
    assert found.error is None
    return found.samples


def test_every_metric_of_every_kind_is_null_with_a_reason(scene, bad, questions):
    engine, good = TransformersEngine(scene[1].encoder, dtype="float32", device=CPU), scene[0].checkpoint
    before = measured(engine, good, questions)
    found = measured(engine, bad, questions)
    for probe in questions:
        assert set(probe.metrics) == {m.name for m in METRICS.values() if m.kind is probe.kind}
        for metric in probe.metrics:
            number = score(metric, found[probe.name])
            assert number.value is None and number.stderr is None and number.reason, metric
            assert score(metric, before[probe.name]).known
    assert measured(engine, good, questions) == before  # and the engine goes on as if nothing had been


COMPARED = ("generate", "logprob", "choice")
READS = {
    "model_utility_geometric": ("logprob", "generate", "choice", "choice", "generate", "choice", "generate"),
    "forget_quality": ("choice",),
    "forget_quality_log10": ("choice",),
    "accuracy_distance": ("choice",),
    "unchanged_answers": ("generate",),
}
READS["model_utility_arithmetic"] = READS["model_utility_geometric"]


@pytest.mark.parametrize("broken", ["model", "anchor"])
def test_every_summary_is_null_where_the_model_or_what_it_is_compared_with_is_not_finite(scene, bad, questions, broken):
    engine, good = TransformersEngine(scene[1].encoder, dtype="float32", device=CPU), scene[0].checkpoint
    whole, spoilt_ = measured(engine, good, questions), measured(engine, bad, questions)
    model, anchor = (spoilt_, whole) if broken == "model" else (whole, spoilt_)
    for name, summary in SUMMARIES.items():
        ways = [(kind,) for kind in COMPARED] if name == "identical_outputs" else [READS.get(name, ("logprob",) * 2)]
        for probes in ways:
            tables, theirs = ([samples[p] for p in probes[: summary.tables]] for samples in (model, anchor))
            number = summarise(name, tables, theirs if summary.against else None)
            if broken == "model" or summary.against:
                assert number.value is None and "tables" not in (number.reason or "tables"), name


@pytest.mark.parametrize("neighbours", [1, 40])
def test_one_text_without_a_number_takes_none_from_the_others(scene, neighbours):
    """They share rows and batches, and 0 times NaN is NaN whatever a mask says."""
    subject, context = scene
    encoder = context.encoder
    state = {name: tensor.clone() for name, tensor in subject.checkpoint.state().items()}
    if HEAD not in state:
        state[HEAD] = state["model.embed_tokens.weight"].clone()
    items = next(p for p in subject.probes if p.kind is ProbeKind.CHOICE).items[:neighbours]
    odd = replace(items[0], id="odd", prompt=f"{items[0].prompt} %")
    answers = [(item, answer) for item in items for answer in (*item.answers, item.reference)]
    elsewhere = {i for item, answer in answers for i in encoder.answer(item, answer).ids}
    token = max(set(encoder.prompt(odd)) - elsewhere)
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.embed_tokens.weight"][token] = math.nan
    probes = every_metric((*items[: neighbours // 2], odd, *items[neighbours // 2 :]))
    untied = TensorCheckpoint(state, subject.checkpoint.path)
    plain = TransformersEngine(encoder, dtype="float32", device=CPU)
    for probe in probes:
        together = measured(plain, untied, (probe,))[probe.name]
        alone = [measured(plain, untied, (replace(probe, items=(item,)),))[probe.name][0] for item in probe.items]
        for metric in probe.metrics:
            known = [score(metric, [sample]).known for sample in together]
            assert known == [score(metric, [sample]).known for sample in alone], metric
            assert not known[[item.id for item in probe.items].index("odd")] and sum(known) >= 0.9 * len(items), metric


@pytest.fixture
def anchors(small_anchors, tmp_path) -> dict[str, Path]:
    """Folders of both anchors, to be spoilt."""
    return {name: copied(anchor.checkpoint.path, tmp_path / name) for name, anchor in small_anchors.subjects.items()}


def spec_of(anchors: dict[str, Path], **model: object):
    given = {name: str(folder) for name, folder in anchors.items()}
    plain = {key: value for key, value in SMALL.items() if key != "model"}
    return trial({**plain, "model": {"name": given["target"], "template": "bare", **model}, "anchors": given})


@pytest.mark.parametrize("which", ["target", "retrained"])
@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
def test_an_anchor_with_such_a_weight_is_refused_by_its_tensor(which, kind, anchors, tmp_path):
    spoil(anchors[which], kind)
    with pytest.raises(
        CheckpointError, match=rf"^anchors.{which}: .*{UP_PROJ} holds NaN or infinite numbers \(1 of"
    ) as said:
        run_trial(spec_of(anchors), Store(tmp_path / "store"), measure=MeasureSpec(attacks=()))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(("dtype", "large"), [("float16", 1e6), ("bfloat16", 3.4e38)])
def test_an_anchor_whose_numbers_its_dtype_does_not_have_is_refused_by_its_tensor(dtype, large, anchors, tmp_path):
    file = anchors["target"] / WEIGHTS
    state = load_file(file)
    state[UP_PROJ].view(-1)[7] = -large
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"{UP_PROJ} holds numbers up to .*e\+.*infinite in {dtype} \(model.dtype"
    ):
        run_trial(spec_of(anchors, dtype=dtype), Store(tmp_path / "store"), measure=MeasureSpec(attacks=()))
    assert resolve_model(ModelSpec(name=str(file.parent)), str(file.parent))  # in fp32 it is a model like others


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_an_adapter_that_is_not_finite_is_refused_where_it_is_trained_from_and_null_where_it_is_measured(
    bad, good, tmp_path
):
    folder = adapter_folder(tmp_path / "adapter", good)
    state = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in state if "lora_B" in name)
    state[name].view(-1)[3] = bad
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} holds NaN or infinite"):
        resolve_model(ModelSpec(name=str(folder)), str(folder))
    check_null(folder, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folder_that_is_measured_is_null_in_every_dtype(dtype, good, kind, tmp_path):
    folder = spoil(copied(good, tmp_path / "model"), kind)
    check_null(folder, tmp_path, "--dtype", dtype)


def check_null(folder: Path, tmp_path: Path, *more: object) -> None:
    words = ("--task", "pocket", "--limit", "2", "--split", "test", "--store", tmp_path / "store", "--json")
    rows = json.loads(regrade("eval", folder, *words, *more).stdout)
    assert len(rows) > 10
    assert {row["value"] for row in rows} == {None} and all(row["reason"] for row in rows)


def test_a_retrained_model_without_numbers_leaves_no_headline_and_says_why(anchors, warm_store, tmp_path):
    """It is finite, so it is only known when it is asked. Neither chance nor 0 takes its place."""
    spoil(anchors["retrained"])
    store = Store(Path(shutil.copytree(warm_store, tmp_path / "store")))
    few = MeasureSpec(attacks=({"name": "rtn", "bits": 4},), limit=6)
    result = run_trial(spec_of(anchors), store, measure=few)
    assert result.row["status"] == "ok"
    rows = [row for row in result.measurements if row["subject"] == "retrained"]
    assert rows and {row["status"] for row in rows} == {str(Status.NULL)}
    assert all(row["value"] is None and row["reason"] for row in rows)
    assert all(
        row["value"] is not None for row in result.measurements if row["subject"] == "target" and row["headline"]
    )
    headlines = result.headlines(Split.TEST)  # utility is about the target alone
    for number in (headlines.forgetting, headlines.robustness, headlines.score):
        assert number.value is None and ("finite" in number.reason or "lacks" in number.reason), number
    (entry,) = json.loads(regrade("board", "show", "--store", store.root, "--json").stdout)[0]["entries"]
    for name in ("forgetting", "robustness", "score"):
        assert entry[name]["value"] is None and "a value is not finite" in entry[name]["reason"]
    shown = regrade("board", "show", "--store", store.root).stdout
    assert "adam · npo: a value is not finite" in shown
    assert not any(character in shown.partition("adam · npo")[2].splitlines()[0] for character in ".%")
