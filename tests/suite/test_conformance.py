"""Every registered objective, smoothing, optimizer and adapter in combination; what each does alone is tested apart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from suite.adapters import ADAPTERS
from suite.config.errors import SpecError
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.oracle.base import Queries
from suite.smoothing import SMOOTHINGS
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
    assert run.metered.queries.grade() is OPTIMIZERS[optimizer].grade
    return True


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


def test_a_meter_that_counted_nothing_has_no_grade():
    with pytest.raises(ValueError, match="there was no query"):
        Queries().grade()
