"""First- and second-order optimizers against torch.optim and against the papers' lines in numpy."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from bowl import Bowl, flat, hilly
from test_oracle import oracle as language_model

from suite.config.settings import SpecError, parse
from suite.optimizers import OPTIMIZERS, Optimizer, OptimizerSettings, Plan
from suite.optimizers.adahessian import AdaHessian, hutchinson, spatial_average
from suite.optimizers.adam8bit import Adam8bit
from suite.optimizers.first_order import SGD, Adam, AdamW, MeanOfSigns, TorchOptimizer
from suite.optimizers.lbfgs import LBFGS, two_loop
from suite.optimizers.second_order import EmpiricalFisher, Sophia
from suite.oracle.base import Grade, Metered, Part, Queries

OURS = [
    "sgd", "adam", "adamw", "adam8bit", "mean_of_signs", "empirical_fisher",
    "sgd_on_quantized_gradient", "adam_on_quantized_gradient",
    "compressed_sgd", "compressed_adam", "sign_sgd", "sign_adam",
    "sophia", "adahessian", "lbfgs",
]  # fmt: skip


def made(settings: OptimizerSettings, oracle: Bowl, steps: int = 20, seed: int = 0) -> Optimizer:
    if settings.name == "adam8bit":
        pytest.importorskip("bitsandbytes", reason="adam8bit is bitsandbytes' own")
    return OPTIMIZERS[settings.name](settings, oracle.parameters, Plan(steps, seed))


def settings_of(name: str, **more: object) -> OptimizerSettings:
    """With everything on that a run has to remember."""
    if "sgd" in name:
        more = {"momentum": 0.9} | more
    if name.startswith("compressed"):
        more = {"error_feedback": True} | more
    if "every" in OPTIMIZERS[name].Settings.model_fields:
        more = {"every": 2} | more
    return OPTIMIZERS[name].Settings(lr=0.02, schedule="linear", **more)


TORCH = [
    (SGD.Settings(lr=0.05), torch.optim.SGD, {}),
    (SGD.Settings(lr=0.05, momentum=0.9, weight_decay=0.1), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (
        SGD.Settings(lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
    (Adam.Settings(lr=0.05), torch.optim.Adam, {}),
    (Adam.Settings(lr=0.05, weight_decay=0.2, betas=(0.8, 0.9)), torch.optim.AdamW,
     {"weight_decay": 0.2, "betas": (0.8, 0.9)}),
    (AdamW.Settings(lr=0.05), torch.optim.AdamW, {"weight_decay": 0.01}),
]  # fmt: skip


def bare(kind: type[torch.optim.Optimizer], steps: int, **settings: object) -> np.ndarray:
    """Where a loop of torch's own gets to."""
    bowl = Bowl(hilly())
    optimizer = kind(bowl.parameters, lr=0.05, fused=True, **settings)
    for _ in range(steps):
        for parameter, part in zip(bowl.parameters, bowl.gradient(), strict=True):
            parameter.grad = part
        optimizer.step()
    return bowl.x


@pytest.mark.parametrize(("ours", "kind", "theirs"), TORCH)
def test_moving_is_torch_optim_bit_for_bit(ours, kind, theirs):
    bowl = Bowl(hilly())
    optimizer = made(ours, bowl)
    for _ in range(10):
        optimizer.step(bowl)
    np.testing.assert_array_equal(bowl.x, bare(kind, 10, **theirs))


@pytest.mark.parametrize(("ours", "kind", "theirs"), TORCH)
def test_the_direction_is_what_torch_optim_moves_by_at_a_step_size_of_one(ours, kind, theirs):
    """Weight decay included: in the gradient for SGD, beside the averages for AdamW."""
    bowl = Bowl(hilly())
    optimizer = made(ours, bowl)
    for _ in range(10):
        optimizer.apply(optimizer.direction(bowl), 0.05)
    np.testing.assert_allclose(bowl.x, bare(kind, 10, **theirs), rtol=1e-5, atol=1e-6)


def test_a_run_may_go_over_from_moving_to_directions_and_keeps_its_averages():
    bowl = Bowl(hilly())
    optimizer = made(Adam.Settings(lr=0.05, weight_decay=0.2), bowl)
    for _ in range(5):
        optimizer.step(bowl)
    for _ in range(3):
        optimizer.apply(optimizer.direction(bowl), 0.05)
    for _ in range(2):
        optimizer.step(bowl)
    np.testing.assert_allclose(bowl.x, bare(torch.optim.AdamW, 10, weight_decay=0.2), rtol=1e-5, atol=1e-6)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(SpecError, match="Set momentum too"):
        parse(SGD.Settings, {"lr": 0.1, "nesterov": True}, "optimizer.")


def test_adamw_is_adam_with_the_published_decay_under_another_name():
    assert AdamW.Settings(lr=0.1).plainest() == Adam.Settings(lr=0.1, weight_decay=0.01)
    assert AdamW.Settings(lr=0.1, weight_decay=0.3, warmup=2).plainest() == Adam.Settings(
        lr=0.1, weight_decay=0.3, warmup=2
    )


def steps(optimizer: Optimizer, bowl: Bowl, count: int, directed: bool) -> None:
    for _ in range(count):
        if directed:
            optimizer.apply(optimizer.direction(bowl), optimizer.lr)
            optimizer.taken += 1
        else:
            optimizer.step(bowl)


@pytest.mark.parametrize("directed", [False, True], ids=["moved", "directed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", OURS)
def test_a_run_taken_up_from_a_saved_state_goes_on_bit_for_bit(name, dtype, directed):
    """After no step, and after an odd number: a curvature of the next step depends on the count."""
    for before in (0, 3):
        bowl = Bowl(hilly(), dtype=dtype)
        first = made(settings_of(name), bowl)
        steps(first, bowl, before, directed)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        place = [p.detach().clone() for p in bowl.parameters]
        labels = bowl.labels.get_state()
        steps(first, bowl, 4, directed)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for _ in range(2):  # the second time from the same saved state: the first has left it alone
            again = Bowl(hilly(), dtype=dtype)
            again.labels.set_state(labels)
            for parameter, weight in zip(again.parameters, place, strict=True):
                parameter.data.copy_(weight)
            second = made(settings_of(name), again)
            second.load_state_dict(saved)
            steps(second, again, 4, directed)
            np.testing.assert_array_equal(again.x, bowl.x)


@pytest.mark.parametrize("name", OURS)
def test_asks_is_what_the_meter_counts(name):
    meter = Metered(Bowl(hilly()))
    optimizer = made(settings_of(name), meter)
    for _ in range(7):
        optimizer.step(meter)
    curvature = math.ceil(7 / 2) if "curvature every k" in optimizer.asks else 0
    assert "1 gradient" in optimizer.asks
    assert meter.queries == Queries(gradient=7, curvature=curvature, bits=meter.queries.bits)
    assert meter.queries.grade() is optimizer.grade


def tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


@pytest.mark.parametrize("name", OURS)
def test_averages_of_bf16_weights_are_fp32(name):
    """In bf16 an average of decay 0.999 never moves: what a step adds is less than half of its last bit."""
    bowl = Bowl(hilly(), dtype=torch.bfloat16)
    optimizer = made(settings_of(name), bowl)
    before = bowl.x
    assert all(part.dtype is torch.float32 for part in optimizer.direction(bowl))
    optimizer.apply(optimizer.direction(bowl), 0.1)
    assert all(p.dtype is torch.bfloat16 for p in bowl.parameters)
    assert not np.array_equal(before, bowl.x)
    if not isinstance(optimizer, TorchOptimizer):
        kept = list(tensors(optimizer.state_dict()))
        assert kept
        assert all(t.dtype is torch.float32 for t in kept)


def test_the_mean_of_signs_line_by_line():
    bowl, m = Bowl(hilly()), np.zeros(20)
    optimizer = made(MeanOfSigns.Settings(lr=0.1, beta=0.8), bowl)
    for _ in range(5):
        m = 0.8 * m + 0.2 * np.sign(bowl.g)
        expected = bowl.x - 0.1 * m
        optimizer.step(bowl)
        np.testing.assert_allclose(bowl.x, expected, atol=1e-6)


def test_without_bitsandbytes_adam8bit_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    bowl = Bowl(hilly())
    with pytest.raises(SpecError, match=r"pip install 'regrade\[bitsandbytes\]'"):
        Adam8bit(Adam8bit.Settings(lr=0.1), bowl.parameters, Plan(steps=1))


def test_adam8bit_is_adamw_with_averages_of_eight_bits():
    """On fewer than 4,096 weights AdamW itself; on more it stays within the published grid of 1/128 of it."""
    small, large = Bowl(hilly()), Bowl(hilly(12))
    large.parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(2, -1))]
    large.gradient = lambda: [large.parameters[0].detach() * 3 + 0.5]
    twin = torch.nn.Parameter(large.parameters[0].detach().clone())
    theirs = torch.optim.AdamW([twin], lr=0.05, weight_decay=0.01)
    one, other = made(Adam8bit.Settings(lr=0.05), small), made(Adam8bit.Settings(lr=0.05), large)
    for _ in range(10):
        one.step(small)
        other.step(large)
        twin.grad = twin.detach() * 3 + 0.5
        theirs.step()
    np.testing.assert_allclose(small.x, bare(torch.optim.AdamW, 10, weight_decay=0.01), rtol=1e-5, atol=1e-6)
    state = other.inner.state[large.parameters[0]]
    assert state["state1"].dtype is state["state2"].dtype is torch.uint8
    moved = twin.detach() - torch.linspace(-1, 1, 8192).view(2, -1)
    difference = large.parameters[0].detach() - twin.detach()
    assert 0 < float(difference.norm() / moved.norm()) < 0.1


def test_sophia_with_decay_line_by_line():
    """Algorithm 3 with curvature every third step, whose labels are resampled: B times the sample's square."""
    s = Sophia.Settings(lr=0.02, every=3, gamma=0.5, weight_decay=0.3)
    bowl = Bowl(hilly())
    optimizer = made(s, bowl)
    m, h = np.zeros(20), np.zeros(20)
    for t in range(8):
        m = 0.965 * m + 0.035 * bowl.g
        x = bowl.x
        optimizer.step(bowl)
        if t % 3 == 0:
            h = 0.99 * h + 0.01 * 7 * flat(bowl.samples[-1].gradient) ** 2
        expected = x - 0.02 * (np.clip(m / np.maximum(0.5 * h, 1e-12), -1, 1) + 0.3 * x)
        np.testing.assert_allclose(bowl.x, expected, atol=2e-6)


def test_published_sophia_code_renews_the_hessian_in_every_step():
    bowl = Bowl(hilly())
    optimizer = made(Sophia.Settings(lr=0.02, every=4), bowl)
    estimates = []
    for _ in range(8):
        optimizer.step(bowl)
        estimates.append(flat(optimizer.curvature))
    renewed = [t for t in range(1, 8) if not np.array_equal(estimates[t], estimates[t - 1])]
    assert renewed == [4]
    assert len(bowl.samples) == 2


def test_published_sophia_code_squares_the_minibatch_gradient_whose_labels_are_not_resampled():
    """One step on a language model: h is (1 - b2) B ghat^2, with ghat by hand from the labels that its seed draws."""
    asked, twin = language_model(), language_model()
    optimizer = Sophia(Sophia.Settings(lr=1e-3), asked.parameters, Plan(steps=4))
    with torch.enable_grad():
        loss, count = twin.objective.resampled(twin.model, twin.batch, torch.Generator().manual_seed(0))
    expected = 0.01 * count * flat(torch.autograd.grad(loss, twin.parameters)) ** 2
    minibatch = 0.01 * count * flat(twin.gradient()) ** 2
    optimizer.step(asked)
    np.testing.assert_allclose(flat(optimizer.curvature), expected, rtol=1e-4, atol=1e-12)
    assert np.abs(minibatch - expected).max() > 0.1 * expected.max()


@pytest.mark.parametrize("name", ["sophia", "empirical_fisher", "adahessian"])
def test_published_sophia_code_averages_the_momentum_twice_in_a_step(name):
    bowl = Bowl(hilly())
    optimizer, g = made(settings_of(name, betas=(0.9, 0.99)), bowl), bowl.g
    optimizer.step(bowl)
    np.testing.assert_allclose(flat(optimizer.mean), 0.1 * g, rtol=1e-5)


def test_the_empirical_fisher_line_by_line():
    s = EmpiricalFisher.Settings(lr=0.02, gamma=0.3, labels=5, weight_decay=0.1)
    bowl = Bowl(hilly())
    optimizer = made(s, bowl)
    m, h = np.zeros(20), np.zeros(20)
    for _ in range(8):
        x, g = bowl.x, bowl.g
        m, h = 0.965 * m + 0.035 * g, 0.99 * h + 0.01 * 5 * g**2
        optimizer.step(bowl)
        expected = x - 0.02 * (np.clip(m / np.maximum(0.3 * h, 1e-12), -1, 1) + 0.1 * x)
        np.testing.assert_allclose(bowl.x, expected, atol=2e-6)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_adahessian_line_by_line(every, power):
    """Algorithm 1 where the Hessian is diagonal, so that Hutchinson's estimate is exact whatever is drawn."""
    diagonal = np.linspace(-0.5, 3, 20)
    bowl = Bowl(np.diag(diagonal))
    s = AdaHessian.Settings(lr=0.1, betas=(0.8, 0.95), power=power, eps=1e-3, weight_decay=0.2, every=every)
    optimizer = made(s, bowl, seed=3)
    m, v, sampled = np.zeros(20), np.zeros(20), 0
    for t in range(1, 8):
        x = bowl.x
        m = 0.8 * m + 0.2 * bowl.g
        if (t - 1) % every == 0:
            v, sampled = 0.95 * v + 0.05 * diagonal**2, sampled + 1
        scale = np.sqrt(v / (1 - 0.95**sampled)) ** power
        optimizer.step(bowl)
        expected = x - 0.1 * (m / (1 - 0.8**t) / (scale + 1e-3) + 0.2 * x)
        np.testing.assert_allclose(bowl.x, expected, rtol=2e-5, atol=2e-6)
    assert set(bowl.products) == {Part.TOTAL}


def test_hutchinsons_estimate_is_unbiased():
    """The variance of a draw's coordinate i is the sum of the squares of row i off the diagonal."""
    a, draws = hilly(), 2000
    bowl = Bowl(a)
    mean = sum(flat(hutchinson(bowl, (0, n))) for n in range(draws)) / draws
    spread = np.sqrt((a**2).sum(1) - a.diagonal() ** 2)
    assert (np.abs(mean - a.diagonal()) < 5 * spread / math.sqrt(draws)).all()
    assert not np.allclose(flat(hutchinson(bowl, (0, 0))), a.diagonal())


def test_spatial_averages_are_block_means_and_leave_vectors_alone():
    d = torch.arange(14.0).view(2, 7)
    expected = [[1, 1, 1, 4, 4, 4, 6], [8, 8, 8, 11, 11, 11, 13]]
    assert spatial_average(d, 3).tolist() == expected
    assert spatial_average(d, 1) is d
    assert spatial_average(d[0], 3).tolist() == d[0].tolist()


def test_adahessian_steps_by_block_means():
    diagonal = np.linspace(1, 3, 20)
    bowl = Bowl(np.diag(diagonal))
    optimizer = made(AdaHessian.Settings(lr=0.1, block=5), bowl)
    x, g = bowl.x, bowl.g
    blocks = np.concatenate([np.repeat(diagonal[:10].reshape(2, 5).mean(1), 5), diagonal[10:]])
    optimizer.step(bowl)
    np.testing.assert_allclose(bowl.x, x - 0.1 * g / (blocks + 1e-4), rtol=1e-5)


def test_the_two_loop_recursion_is_the_dense_bfgs_inverse():
    draw, h = np.random.default_rng(0), hilly(8)
    s = [draw.normal(size=8) for _ in range(5)]
    y = [h @ way for way in s]
    b = (s[-1] @ y[-1]) / (y[-1] @ y[-1]) * np.eye(8)
    for way, curved in zip(s, y, strict=True):
        rho = 1 / (way @ curved)
        left = np.eye(8) - rho * np.outer(way, curved)
        b = left @ b @ left.T + rho * np.outer(way, way)
    v = draw.normal(size=8)
    got = two_loop(torch.from_numpy(v), [torch.from_numpy(w) for w in s], [torch.from_numpy(w) for w in y])
    np.testing.assert_allclose(got.numpy(), b @ v, rtol=1e-9)


def go(bowl: Bowl, way: np.ndarray) -> None:
    with torch.no_grad():
        for parameter, part in zip(bowl.parameters, bowl.split(torch.from_numpy(way)), strict=True):
            parameter.add_(part)


def test_lbfgs_with_a_pair_along_every_conjugate_direction_is_the_damped_inverse():
    """v is the total's gradient, H the retain loss's Hessian. (Pairs of independent directions that are not conjugate
    determine H too, but BFGS keeps only the newest of their equations.)"""
    retain = hilly(8, seed=4)
    bowl = Bowl(hilly(8), retain)
    optimizer = made(LBFGS.Settings(lr=0.1, pairs=8, every=1, damping=0.2), bowl)
    optimizer.direction(bowl)
    for way in np.linalg.eigh(retain)[1].T:
        go(bowl, way)
        direction = flat(optimizer.direction(bowl))
    assert set(bowl.products) == {Part.RETAIN}
    np.testing.assert_allclose(direction, np.linalg.solve(retain + 0.2 * np.eye(8), bowl.g), rtol=2e-4)


def test_lbfgs_begins_with_the_curvature_along_the_gradient():
    """One pair (v, Hv): the step along v is Newton's on the line, v'v / v'Hv at its own scale."""
    bowl = Bowl(hilly(), 3.0 * np.eye(20))
    optimizer = made(LBFGS.Settings(lr=1.0, damping=1.0), bowl)
    np.testing.assert_allclose(flat(optimizer.direction(bowl)), bowl.g / 4, rtol=1e-5)


def test_lbfgs_leaves_out_pairs_along_which_the_retain_loss_curves_down():
    bowl = Bowl(hilly(), -np.eye(20))
    optimizer = made(LBFGS.Settings(lr=0.01, every=1, damping=0.5), bowl)
    for _ in range(3):
        np.testing.assert_allclose(flat(optimizer.direction(bowl)), bowl.g, rtol=1e-6)
        go(bowl, np.ones(20))
    assert len(bowl.products) == 3


def test_lbfgs_remembers_so_many_pairs_and_none_of_standing_still():
    bowl = Bowl(hilly())
    optimizer = made(LBFGS.Settings(lr=0.01, every=1, pairs=3), bowl)
    for kept in (1, 1, 1):
        optimizer.direction(bowl)
        assert len(optimizer.s) == len(optimizer.y) == kept
    for kept in (2, 3, 3):
        go(bowl, np.ones(20))
        optimizer.direction(bowl)
        assert len(optimizer.s) == len(optimizer.y) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adahessian", "lbfgs", "sophia"])
def test_second_order_goes_down_on_a_language_model(name, dtype):
    meter = Metered(language_model(dtype=dtype))
    lr = {"adahessian": 0.002, "lbfgs": 0.02, "sophia": 0.01}[name]
    optimizer = OPTIMIZERS[name](OPTIMIZERS[name].Settings(lr=lr, every=3), meter.parameters, Plan(steps=12))
    before = float(meter.values(Part.TOTAL, [None]))
    for _ in range(12):
        optimizer.step(meter)
    assert float(meter.values(Part.TOTAL, [None])) < before
    assert meter.queries.grade() is Grade.SECOND
