"""Noise by key, directions of every kind, and the estimates made with them, in every kind of memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from suite.optimizers import OPTIMIZERS, Run
from suite.optimizers.estimates import Differences, ForwardMode, RandomDirections, ZerothOrder
from suite.oracle import noise
from suite.oracle.base import Displacement, Metered, Part
from suite.oracle.directions import Directions, Kind, LowRank, combination
from tests.support.language_model import oracle, same_bits, weights
from tests.support.quadratic import Quadratic

KINDS = list(Kind)


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


def test_noise_is_standard_normal():
    """Moments, and Kolmogorov-Smirnov against the exact distribution: 400,000 draws, six in ten runs deviate less."""
    (drawn,) = noise.gaussian([torch.empty(400_001)], (7, 1))
    assert float(drawn.mean()) == pytest.approx(0, abs=5 / math.sqrt(4e5))
    assert float(drawn.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / 4e5))
    assert float((drawn**4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / 4e5))
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
    half = len(drawn) // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half : 2 * half])[0, 1]) < 5 / math.sqrt(half)


@pytest.mark.parametrize("size", [1, 2, 3, 1001, noise.CHUNK + 1])
def test_noise_follows_its_key_alone(size):
    """Neither on the number of threads nor on the tensors drawn with it; the returned squares give its norm."""
    like = [torch.empty(5, 3), torch.empty(size)]
    one, four = [torch.empty(t.shape) for t in like], [torch.empty(t.shape) for t in like]
    squares = noise.fill(one, (3, 4), threads=1)
    noise.fill(four, (3, 4), threads=4)
    alone = torch.empty(size)
    noise.fill([alone], (3, 4), first=1)
    assert same_bits(one, four)
    assert torch.equal(alone, one[1])
    assert math.fsum(squares) == pytest.approx(float(flat(one).square().sum()), rel=1e-5)
    assert not torch.equal(noise.gaussian(like, (3, 5))[1], one[1])


def test_signs_are_signs():
    (drawn,) = [torch.empty(10_001)]
    noise.fill_signs([drawn], (1, 2))
    assert set(drawn.tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_directions_have_root_mean_square_one_and_identity_covariance(kind):
    like = [torch.empty(3, 4), torch.empty(5)]
    directions = Directions(kind, like, seed=2)
    draws = torch.stack([d.factor * flat(d.tensors) for d in map(directions, range(6000))])
    assert float(draws.square().mean()) == pytest.approx(1, abs=0.03)
    covariance = draws.T @ draws / len(draws)
    assert float((covariance - torch.eye(17)).abs().max()) < 0.11  # low rank: products of normals have heavy tails
    if kind is Kind.SPHERE:
        assert torch.allclose(draws.norm(dim=1), torch.tensor(math.sqrt(17), dtype=torch.float64), rtol=1e-5)


def test_each_tensor_of_a_tensor_sphere_has_one_length():
    like = [torch.empty(3, 4), torch.empty(5)]
    directions = Directions(Kind.TENSOR_SPHERE, like, seed=2)
    for number in range(3):
        direction = directions(number)
        assert direction.factor == 1
        for tensor in direction.tensors:
            assert float(tensor.norm()) == pytest.approx(math.sqrt(tensor.numel()), rel=1e-5)


@pytest.mark.parametrize("rank", [2, 9])
def test_a_kept_subspace_is_that_of_several_directions_and_covers_all_dimensions_in_time(rank):
    """Within a subspace matrices share the space of their columns; over subspaces E[u u'] is the identity. A rank above
    the number of rows is that number."""
    like = [torch.empty(6, 5), torch.empty(4)]
    directions = Directions(Kind.LOW_RANK, like, seed=3, rank=rank, keep=3)
    draws = [directions(number).tensors for number in range(6000)]
    lefts = [draw.factors[0][0] for draw in draws]
    k = min(rank, 6)
    for left in lefts[:4]:
        torch.testing.assert_close(left.T @ left, 6 / k * torch.eye(k), atol=1e-5, rtol=1e-5)
    assert torch.equal(lefts[0], lefts[2]) and torch.equal(lefts[3], lefts[5]) and not torch.equal(lefts[2], lefts[3])
    assert not torch.equal(draws[0].factors[0][1], draws[1].factors[0][1])
    covariance = torch.stack([flat(draw) for draw in draws])
    covariance = covariance.T @ covariance / len(draws)
    assert float((covariance - torch.eye(34)).abs().max()) < 0.2
    again = Directions(Kind.LOW_RANK, like, seed=3, rank=rank, keep=3)
    for number in (4, 0, 5):
        assert same_bits(list(again(number).tensors), list(draws[number]))
    added = combination(draws[:3], [0.5, -2.0, 3.0])
    assert added.factors[0][0] is lefts[0]
    torch.testing.assert_close(added[0], 0.5 * draws[0][0] - 2 * draws[1][0] + 3 * draws[2][0])


@pytest.mark.parametrize("kind", [Kind.SPHERE, Kind.TENSOR_SPHERE, Kind.GAUSSIAN, Kind.RADEMACHER])
def test_a_direction_is_the_same_whenever_and_in_whatever_memory_it_is_drawn(kind):
    like = [torch.empty(3, 4), torch.empty(5)]
    kept, made = Directions(kind, like, 9), Directions(kind, like, 9, memory="seed")
    for number in (0, 1, 2, 7, 3):
        one, other = kept(number), made(number)
        assert one.factor == other.factor
        assert same_bits(list(one.tensors), list(other.tensors))


def test_low_rank_directions_have_their_rank_and_add_up():
    like = [torch.empty(6, 5), torch.empty(4)]
    draws = [LowRank(like, 2, (1, n)) for n in range(3)]
    assert torch.linalg.matrix_rank(draws[0][0]) == 2
    added = combination(draws, [0.5, -2.0, 3.0])
    for i in range(2):
        torch.testing.assert_close(added[i], 0.5 * draws[0][i] - 2 * draws[1][i] + 3 * draws[2][i])


def estimate_of(quadratic: Quadratic, **how) -> torch.Tensor:
    made = Differences(ZerothOrder(**how), quadratic.parameters, seed=7)
    return flat(made(quadratic))


@pytest.mark.parametrize("kind", KINDS)
def test_the_central_difference_is_unbiased_on_a_quadratic(kind):
    """Its smoothed form has the same gradient, Ax + b, at any radius."""
    quadratic = Quadratic(size=8)
    exact = quadratic.a @ quadratic.x + quadratic.b
    mean = estimate_of(quadratic, samples=6_000, radius=0.5, direction=kind)
    assert float((mean - exact).norm() / exact.norm()) < 0.12  # sqrt(d / n) = 0.04; low rank is spread more


@pytest.mark.parametrize("kind", [Kind.SPHERE, Kind.TENSOR_SPHERE, Kind.GAUSSIAN, Kind.RADEMACHER])
def test_the_forward_difference_is_unbiased_on_a_quadratic_for_even_directions(kind):
    """f(x + ru) - f(x) has the extra term r/2 u'Au, and E[u'Au u] = 0 because -u is as likely as u."""
    quadratic = Quadratic(size=8)
    exact = quadratic.a @ quadratic.x + quadratic.b
    mean = estimate_of(quadratic, samples=6_000, radius=0.3, direction=kind, difference="forward")
    assert float((mean - exact).norm() / exact.norm()) < 0.12


@pytest.mark.parametrize("kind", [Kind.SPHERE, Kind.GAUSSIAN])
def test_the_central_difference_is_unbiased_for_the_smoothed_quartic(kind):
    """f = |x|^4. Smoothed by v it is |x|^4 + (2 + 4/d) E|v|^2 |x|^2 + const, so its gradient is
    (4 |x|^2 + 2 (2 + 4/d) E|v|^2) x; E|v|^2 is r^2 d for the Gaussian, and r^2 d d/(d+2) for the sphere's ball."""
    d, radius = 8, 0.6
    quartic = Quadratic(size=d, f=lambda x: (x @ x) ** 2)
    second_moment = radius**2 * d * (d / (d + 2) if kind is Kind.SPHERE else 1)
    exact = (4 * (quartic.x @ quartic.x) + 2 * (2 + 4 / d) * second_moment) * quartic.x
    plain = 4 * (quartic.x @ quartic.x) * quartic.x
    mean = estimate_of(quartic, samples=6_000, radius=radius, direction=kind)
    assert float((mean - exact).norm() / exact.norm()) < 0.08
    assert float((mean - plain).norm() / plain.norm()) > 0.08, "the test would notice the plain gradient"


def test_rademacher_is_biased_on_a_quartic_as_the_docs_say():
    """f = sum x_i^4: with signs the difference sees x_i^3 + r^2 x_i (and r^2 x_j coupling vanishes), where smoothing
    over any isotropic v with E v_i^2 = r^2 gives 4 x_i^3 + 12 r^2 x_i."""
    quartic = Quadratic(size=8, f=lambda x: (x**4).sum())
    mean = estimate_of(quartic, samples=6_000, radius=0.8, direction=Kind.RADEMACHER)
    smoothed = 4 * quartic.x**3 + 12 * 0.64 * quartic.x
    signs = 4 * quartic.x**3 + 4 * 0.64 * quartic.x
    assert float((mean - signs).norm() / signs.norm()) < 0.08
    assert float((mean - smoothed).norm() / smoothed.norm()) > 0.2


def test_forward_mode_is_unbiased_for_the_gradient_itself():
    quadratic = Quadratic(size=8)
    exact = quadratic.a @ quadratic.x + quadratic.b
    mean = flat(ForwardMode(RandomDirections(samples=6_000), quadratic.parameters, seed=1)(quadratic))
    assert float((mean - exact).norm() / exact.norm()) < 0.08


def test_published_code_divides_wrongly_for_several_samples_ours_is_their_mean():
    """q samples are the mean of q estimates of one sample each, along the same directions."""
    quadratic = Quadratic()
    four = Differences(ZerothOrder(samples=4, radius=0.1), quadratic.parameters, seed=3)
    one = Differences(ZerothOrder(samples=1, radius=0.1), quadratic.parameters, seed=3)
    mean = sum(flat(one(quadratic)).clone() for _ in range(4)) / 4
    torch.testing.assert_close(flat(four(quadratic)), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("held", [0, 1 << 22])
@pytest.mark.parametrize("name", ["zo_sgd", "r_adazo", "zo_adam", "zo_sign_sgd"])
def test_memory_changes_nothing_but_memory(name, held, samples, monkeypatch):
    """Three steps of the same run on a language model with tied embeddings, directions kept or drawn again; one by one,
    as those of large models, or held together."""
    monkeypatch.setattr("suite.optimizers.estimates.HELD", held)

    def run(memory: str):
        loss_oracle = oracle()
        kind = OPTIMIZERS[name]
        zo = ZerothOrder(samples=samples, memory=memory)
        optimizer = kind(kind.Settings(lr=1e-3, zo=zo), loss_oracle.parameters, Run(3, seed=4))
        for _ in range(3):
            optimizer.step(loss_oracle)
        return weights(loss_oracle)

    kept = run("keep")
    assert same_bits(kept, run("seed"))
    monkeypatch.setattr("suite.optimizers.estimates.HELD", (1 << 22) - held)
    assert same_bits(kept, run("keep"))


def test_low_rank_places_asked_together_answer_as_one_by_one():
    """Against the same displacements as plain tensors, which the oracle evaluates one at a time."""
    loss_oracle = oracle(retain="kl")
    before = weights(loss_oracle)
    draws = [LowRank(loss_oracle.parameters, 2, (0, n)) for n in range(3)]
    together = loss_oracle.values(Part.TOTAL, [None, *(Displacement.along(d, s) for d in draws for s in (0.02, -0.02))])
    apart = [loss_oracle.values(Part.TOTAL, [None])]
    apart += [loss_oracle.values(Part.TOTAL, [Displacement.along(list(d), s)]) for d in draws for s in (0.02, -0.02)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=2e-6, atol=1e-6)
    assert same_bits(before, weights(loss_oracle))
    assert loss_oracle.queries.value == 14


def test_low_rank_chunks_change_nothing(monkeypatch):
    loss_oracle = oracle()
    draws = [Displacement.along(LowRank(loss_oracle.parameters, 1, (0, n)), 0.02) for n in range(5)]
    in_one_pass = loss_oracle.values(Part.FORGET, draws)
    monkeypatch.setattr("suite.oracle.loss.REPLICATED", 1)
    torch.testing.assert_close(loss_oracle.values(Part.FORGET, draws), in_one_pass, rtol=2e-6, atol=1e-6)


def test_forward_differences_share_the_clean_value():
    meter = Metered(Quadratic())
    Differences(ZerothOrder(samples=5, difference="forward"), meter.parameters, seed=0)(meter)
    assert meter.queries.value == 6


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="rank belongs to direction=low_rank"):
        ZerothOrder(rank=2)
    with pytest.raises(ValueError, match="keep belongs to direction=low_rank"):
        ZerothOrder(keep=2)
    with pytest.raises(ValueError, match="memory=seed"):
        ZerothOrder(direction="low_rank", memory="seed")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_making_directions_anew_needs_the_memory_of_inference():
    """Peak of a process of its own: beyond the weights, `seed` needs less than one more copy; `keep` three and more."""

    code = """
import os
import torch
from suite.optimizers.estimates import Differences, ZerothOrder
from suite.oracle.base import Displacement
from suite.oracle.loss import LossOracle
from suite.optimizers import OPTIMIZERS, Run

class Objective:
    parts = ()
    state = ()
    def relearn(self, model, batch): return model(torch.ones(1, 512)).double().mean()

model = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in range(160)))
oracle = LossOracle(model, Objective())
class Batch:
    class forget: size = 1
oracle.batch = Batch
from suite.oracle.base import Part
values = oracle.values
oracle.values = lambda part, places: values(Part.RELEARN, places)
kind = OPTIMIZERS["zo_sgd"]
def peak():  # of this process alone: what getrusage says begins with the peak of whoever started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

for memory in ("seed", "keep"):
    if os.fork():  # a process for each, that begins with what this one holds
        assert os.wait()[1] == 0
        continue
    settings = kind.Settings(lr=1e-6, zo=ZerothOrder(memory=memory, radius=1e-2))
    optimizer = kind(settings, oracle.parameters, Run(2))
    before = peak()
    for _ in range(2): optimizer.step(oracle)
    print((peak() - before) * 1024 / (160 * 512 * 512 * 4), flush=True)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    seed, keep = map(float, done.stdout.split())
    assert seed < 0.5
    assert keep > 1.5
