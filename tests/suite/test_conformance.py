"""Properties of every registered objective, smoothing, optimizer and adapter, alone and in combination."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from suite.adapters import ADAPTERS
from suite.config.errors import SpecError
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.optimizers.base import KINDS
from suite.oracle.base import Queries
from suite.smoothing import SMOOTHINGS
from tests.support.language_model import same_bits
from tests.support.runs import STEPS, made


def runs_or_is_refused(objective: str, smoothing: str, optimizer: str, adapter: str = "full") -> bool:
    """Whether the run is accepted. If so, it ends with finite weights that have moved, and has the declared grade."""
    try:
        run = made(objective, smoothing, optimizer, adapter)
    except SpecError as refusal:
        assert len(str(refusal)) > 40, f"says why: {refusal}"
        return False
    before = [p.detach().clone() for p in run.oracle.parameters]
    run.steps(range(STEPS))
    moved = [not torch.equal(b, p) for b, p in zip(before, run.oracle.parameters, strict=True)]
    assert all(bool(w.isfinite().all()) for w in run.weights())
    assert any(moved) or optimizer == "zo_conservative", "a conservative step may stay"
    grade = run.metered.queries.grade()
    assert optimizer == "hybrid" or grade is OPTIMIZERS[optimizer].grade  # three steps of a hybrid may be of one kind
    return True


def available(optimizer: str) -> str:
    if optimizer == "adam8bit":
        pytest.importorskip("bitsandbytes", reason="adam8bit needs bitsandbytes")
    return optimizer


PLAIN = ("npo", "none", "sgd", "full")
AXES: tuple[list[str], ...] = (list(OBJECTIVES), list(SMOOTHINGS), list(OPTIMIZERS), list(ADAPTERS))
PAIRS = list(itertools.combinations(range(4), 2))


@pytest.mark.parametrize("axes", PAIRS, ids=lambda axes: "x".join("osna"[axis] for axis in axes))
@pytest.mark.filterwarnings("ignore:a zeroth-order difference was lost")
def test_every_pair_runs_or_is_refused(axes):
    ran = 0
    for names in itertools.product(*(AXES[axis] for axis in axes)):
        choice = list(PLAIN)
        for axis, name in zip(axes, names, strict=True):
            choice[axis] = name
        if choice[2] == "adam8bit":
            continue
        ran += runs_or_is_refused(*choice)
    assert ran > 0.75 * len(AXES[axes[0]]) * len(AXES[axes[1]]), "most go together"


def triples() -> Iterator[tuple[str, str, str]]:
    return itertools.product(*AXES[:3])


@pytest.mark.filterwarnings("ignore:a zeroth-order difference was lost")
def test_a_sample_of_triples_runs_or_is_refused():
    for choice in random.Random(0).sample(list(triples()), 150):
        if choice[2] != "adam8bit":
            runs_or_is_refused(*choice)


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.filterwarnings("ignore:a zeroth-order difference was lost")
def test_the_whole_cube_runs_or_is_refused(objective):
    for choice in triples():
        if choice[0] == objective and choice[2] != "adam8bit":
            runs_or_is_refused(*choice)


def alone() -> list[tuple[str, str, str]]:
    """Every entry of the three axes once, with entries of the other axes that make use of it."""
    return [
        *((objective, "none", "adam") for objective in OBJECTIVES),
        *(("npo", smoothing, "hybrid") for smoothing in SMOOTHINGS),
        *(("npo", "none", optimizer) for optimizer in OPTIMIZERS),
    ]


HYBRID = {"optimizer": {"block": 2}}


@pytest.mark.parametrize("choice", alone(), ids="-".join)
@pytest.mark.filterwarnings("ignore:a zeroth-order difference was lost")
def test_a_run_repeats_bit_for_bit_and_goes_on_from_its_state_in_mid_run(choice):
    """Three steps, saved and loaded through a file into new objects, three more: the bits of six steps."""
    available(choice[2])
    more = HYBRID if choice[2] == "hybrid" else {}
    uninterrupted = made(*choice, more=more).steps(range(2 * STEPS)).weights()
    again = made(*choice, more=more).steps(range(2 * STEPS)).weights()
    assert same_bits(uninterrupted, again)
    half = made(*choice, more=more).steps(range(STEPS))
    file = io.BytesIO()
    torch.save(half.state(), file)
    half.steps(range(STEPS, 2 * STEPS))  # the saved state must not change with the run
    file.seek(0)
    resumed = made(*choice, more=more).load(torch.load(file, weights_only=True))
    assert same_bits(uninterrupted, resumed.steps(range(STEPS, 2 * STEPS)).weights())


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_what_an_optimizer_says_it_asks_is_what_the_meter_counts(name):
    """With three samples, every second step where there is an interval, and both parts of a hybrid."""
    available(name)
    fields = OPTIMIZERS[name].Settings.model_fields
    more: dict[str, Any] = {}
    if "zo" in fields:
        more["zo"] = {"samples": 3}
    if "every" in fields:
        more["every"] = 2
    if name == "hybrid":
        more["block"] = 2
    run = made("npo", "none", name, more={"optimizer": more}).steps(range(2 * STEPS))
    counted = {kind: getattr(run.metered.queries, kind) for kind in KINDS}
    assert counted == OPTIMIZERS[name].queries(run.optimizer.settings, 2 * STEPS)


def test_a_meter_that_counted_nothing_has_no_grade():
    with pytest.raises(ValueError, match="there was no query"):
        Queries().grade()
