"""A quadratic loss as an oracle for weights of any dtype, known in closed form, and the optimizers that go down it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from suite.optimizers import OPTIMIZERS, Optimizer, OptimizerSettings, Run
from suite.oracle.base import CurvatureSample, Displacement, Part


class Bowl:
    """total(x) = x'Ax/2 + b'x, and a retain loss with a Hessian of its own. Sums in float64.

    Args:
        a: Hessian of the total, (d, d) with d divisible by 4. retain: that of the retain loss.
    """

    def __init__(self, a: np.ndarray, retain: np.ndarray | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.a = torch.from_numpy(a)
        self.hessians = {Part.TOTAL: self.a, Part.RETAIN: self.a if retain is None else torch.from_numpy(retain)}
        draw = torch.Generator().manual_seed(1)
        self.b = torch.randn(len(a), generator=draw, dtype=torch.float64)
        start = torch.randn(len(a), generator=draw).to(dtype)
        half = len(a) // 2
        self.parameters = [start[:half].clone().view(2, -1).requires_grad_(), start[half:].clone().requires_grad_()]
        self.labels = torch.Generator().manual_seed(2)
        self.samples: list[CurvatureSample] = []
        self.products: list[Part] = []
        self.bits: list[int] = []

    @property
    def x(self) -> np.ndarray:
        return flat(self.parameters)

    @property
    def g(self) -> np.ndarray:
        """The gradient in the precision in which the oracle gives it."""
        return flat(self.gradient())

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> torch.Tensor:
        raise AssertionError("no optimizer here asks for values")

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[torch.Tensor]:
        return self.split(self.a @ torch.from_numpy(self.x) + self.b)

    def curvature_sample(self) -> CurvatureSample:
        """A gradient for other labels: it has nothing to do with `gradient`, as in a model that is wrong."""
        drawn = torch.randn(len(self.a), generator=self.labels, dtype=torch.float64)
        self.samples.append(CurvatureSample(self.split(drawn), 7))
        return self.samples[-1]

    def hvp(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> list[torch.Tensor]:
        self.products.append(part)
        return self.split(self.hessians[part] @ torch.from_numpy(flat(direction)))

    def compressed(self, bits: int) -> None:
        self.bits.append(bits)

    def stepped(self) -> None:
        pass

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        half = len(vector) // 2
        dtype = self.parameters[0].dtype
        return [vector[:half].view(2, -1).to(dtype), vector[half:].to(dtype)]


def flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat([t.detach().flatten() for t in tensors]).double().numpy()


def hilly(size: int = 20, seed: int = 0) -> np.ndarray:
    """A dense positive definite matrix."""
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def made(settings: OptimizerSettings, oracle: Bowl, steps: int = 20, seed: int = 0) -> Optimizer:
    if settings.name == "adam8bit":
        pytest.importorskip("bitsandbytes", reason="adam8bit is bitsandbytes' own")
    return OPTIMIZERS[settings.name](settings, oracle.parameters, Run(steps, seed))


def settings_of(name: str, **more: object) -> OptimizerSettings:
    """With every option on that adds state to a run."""
    if "sgd" in name:
        more = {"momentum": 0.9} | more
    if name.startswith("compressed"):
        more = {"error_feedback": True} | more
    if "every" in OPTIMIZERS[name].Settings.model_fields:
        more = {"every": 2} | more
    return OPTIMIZERS[name].Settings(lr=0.02, schedule="linear", **more)
