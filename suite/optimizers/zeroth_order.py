"""Zeroth-order optimizers: steps along estimates of the gradient that use loss values alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Decay
from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.estimates import Differences, Estimate, ForwardMode, RandomDirections, ZerothOrder
from suite.optimizers.first_order import zeros
from suite.oracle.base import Displacement, Grade, Oracle, Part
from suite.oracle.directions import Factored, Factors, LazyTensors


class DirectionsSettings(OptimizerSettings):
    """zo: the random directions of the estimate."""

    zo: RandomDirections = RandomDirections()


class ZerothOrderSettings(DirectionsSettings):
    """zo: how the gradient is estimated from loss values."""

    zo: ZerothOrder = ZerothOrder()


Z = TypeVar("Z", bound=DirectionsSettings)


class ZerothOrderOptimizer(Optimizer[Z]):
    """An optimizer that uses an estimate of the gradient. Its averages are fp32 whatever the weights' dtype."""

    grade = Grade.ZEROTH
    queries_per_step = "2q value"
    state = (*Optimizer.state, "estimate")

    def __init__(self, settings: Z, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.estimate: Estimate[Any] = self.estimator(settings.zo, parameters, run.seed)

    estimator: type[Estimate[Any]] = Differences

    @property
    def lost_to_rounding(self) -> int:
        """Number of differences so far that may be due to rounding alone."""
        return getattr(self.estimate, "lost_to_rounding", 0)

    @property
    def estimate_norm(self) -> float | None:
        return self.estimate.norm

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        return self.estimate(oracle)


class ZOSGD(ZerothOrderOptimizer["ZOSGD.Settings"]):
    """Descent along the estimate (ZO-SGD; MeZO, arXiv 2305.17333), or along its running sum with momentum.

    m <- momentum m + g;  x <- x - lr m
    """

    source = "arXiv 1309.5549"
    state = (*ZerothOrderOptimizer.state, "mean")

    class Settings(ZerothOrderSettings):
        name: Literal["zo_sgd"] = "zo_sgd"
        momentum: float = Field(0.0, ge=0, lt=1)

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.mean = zeros(parameters) if settings.momentum else []

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        estimate = self.estimate(oracle)
        for mean, part in zip(self.mean, estimate, strict=False):
            mean.mul_(self.settings.momentum).add_(part)
        return self.mean or estimate


class ZOSignSGD(ZerothOrderOptimizer["ZOSignSGD.Settings"]):
    """The sign of the estimate, coordinate by coordinate (ZO-signSGD, Liu et al. 2019).

    With one sample and a dense direction u it is the sign of the slope times the signs of u.
    """

    source = "openreview BJe-DsC5Fm"

    class Settings(ZerothOrderSettings):
        name: Literal["zo_sign_sgd"] = "zo_sign_sgd"

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        estimate = self.estimate(oracle)
        return LazyTensors(len(estimate), lambda i: estimate[i].sign())


class ZOSlopeSign(ZerothOrderOptimizer["ZOSlopeSign.Settings"]):
    """Steps of equal length along the directions: 1/q sum_i sign(slope_i) u_i.

    Published code calls this ZO-signSGD, but takes the sign of one slope per direction, not of each coordinate.
    """

    source = "arXiv 2402.11592 (its code)"

    class Settings(ZerothOrderSettings):
        name: Literal["zo_slope_sign"] = "zo_slope_sign"

    class _Signs(Differences):
        def slopes(self, *query) -> list[float]:
            return [float(slope > 0) - float(slope < 0) for slope in super().slopes(*query)]

    estimator = _Signs


class TwoMoments(ZerothOrderOptimizer[Z]):
    """An optimizer with running averages of first and second moments."""

    state = (*ZerothOrderOptimizer.state, "mean", "square")

    def __init__(self, settings: Z, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.mean, self.square = zeros(parameters), zeros(parameters)


class ZOAdam(TwoMoments["ZOAdam.Settings"]):
    """Adam on the estimate (ZO-Adam, arXiv 2402.11592), with Adam's bias correction.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  x <- x - lr mhat / (sqrt(vhat) + eps)
    """

    source = "arXiv 2402.11592"

    class Settings(ZerothOrderSettings):
        name: Literal["zo_adam"] = "zo_adam"
        betas: tuple[Decay, Decay] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        (b1, b2), eps = self.settings.betas, self.settings.eps
        for mean, square, part in zip(self.mean, self.square, self.estimate(oracle), strict=True):
            mean.lerp_(part, 1 - b1)
            square.mul_(b2).addcmul_(part, part, value=1 - b2)
        steps = (
            self.estimate.drawn // self.settings.zo.samples
        )  # its own steps: in a hybrid they are fewer than the run's
        mean_correction, square_correction = 1 - b1**steps, 1 - b2**steps

        def step(i: int) -> Tensor:
            return (self.mean[i] / mean_correction).div_((self.square[i] / square_correction).sqrt_().add_(eps))

        return LazyTensors(len(self.mean), step)


class RAdaZOSettings(ZerothOrderSettings):
    """betas: decay of the first moment, and of the average of squared first moments."""

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)


class RAdaZO(TwoMoments[RAdaZOSettings]):
    """R-AdaZO (Shu et al. 2025, arXiv 2502.01014): Adam whose second moment comes from the *smoothed* estimate.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) m^2;  x <- x - lr m / sqrt(v + eps)

    As published it has no bias correction, so the first steps are up to sqrt(1 / (1 - b2)) lr long: use a warmup.
    """

    source = "arXiv 2502.01014"

    class Settings(RAdaZOSettings):
        name: Literal["r_adazo"] = "r_adazo"

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        b1, b2 = self.settings.betas
        for mean, square, part in zip(self.mean, self.square, self.estimate(oracle), strict=True):
            mean.lerp_(part, 1 - b1)
            square.mul_(b2).addcmul_(mean, mean, value=1 - b2)
        return LazyTensors(len(self.mean), lambda i: self.scaled(self.mean[i], self.square[i]))

    def scaled(self, mean: Tensor, square: Tensor) -> Tensor:
        """The direction of a tensor from its averages."""
        return mean / (square + self.settings.eps).sqrt_()


class RAdaZOCode(RAdaZO):
    """R-AdaZO as its authors' code has it: eps outside of the root, and a slower second moment.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) m^2;  x <- x - lr m / (sqrt(v) + eps)

    With it go zo.direction=tensor_sphere, zo.difference=forward and zo.samples=2. Their code displaces one tensor at a
    time, at the cost of one more query for each tensor; here all are displaced at once, as in the paper.
    """

    source = "arXiv 2502.01014 (its code)"

    class Settings(RAdaZOSettings):
        name: Literal["r_adazo_code"] = "r_adazo_code"
        betas: tuple[Decay, Decay] = (0.9, 0.999)

    def scaled(self, mean: Tensor, square: Tensor) -> Tensor:
        return mean / square.sqrt().add_(self.settings.eps)


class ZOMuon(ZerothOrderOptimizer["ZOMuon.Settings"]):
    """Steps along the matrix sign of the estimate (ZO-Muon): U V' of its singular value decomposition U S V'.

        G <- U V' of each matrix of the estimate;  x <- x - lr G

    Published with estimates in a subspace that is kept: zo.direction=low_rank, rank=2, keep=100, samples=4 and
    difference=forward. There the signs of a few columns are taken. Here they are exact; the published code iterates
    toward them (Newton-Schulz). Vectors, such as the gains of norms, do not move; there they move by steps of 1e-7.
    """

    source = "arXiv 2602.17155"

    class Settings(ZerothOrderSettings):
        name: Literal["zo_muon"] = "zo_muon"

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        estimate = self.estimate(oracle)
        if isinstance(estimate, Factored):
            return Factored([_signed_factors(factors) for factors in estimate.factors])
        return LazyTensors(len(estimate), lambda i: _signed(estimate[i]))


def _signed(tensor: Tensor) -> Tensor:
    """The matrix sign; of a vector nothing."""
    return _matrix_sign(tensor) if tensor.dim() == 2 else 0 * tensor


def _signed_factors(factors: Factors) -> Factors:
    """The matrix sign, of A B' as factors again."""
    if isinstance(factors, Tensor):
        return _signed(factors)
    (a, above), (b, below) = (torch.linalg.qr(factor) for factor in factors)
    return a @ _matrix_sign(above @ below.T), b


def _matrix_sign(matrix: Tensor) -> Tensor:
    """U V' of U S V'. Directions in which the matrix is 0 stay 0."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return ((u * (s > s[0] * 1e-6)) @ v).to(matrix.dtype)


class ZOConservative(ZerothOrderOptimizer["ZOConservative.Settings"]):
    """The best of three: a step down the estimate, a step up it, or none (ZO-Conservative, arXiv 2402.11592).

    All three are compared on the step's batch, so the loss on it never rises if exactly this step is taken. A mix, or a
    control that uses only the length of the step, moves in another direction.
    """

    source = "arXiv 2402.11592"
    queries_per_step = "2q value + 3 value"

    class Settings(ZerothOrderSettings):
        name: Literal["zo_conservative"] = "zo_conservative"

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        estimate = self.estimate(oracle)
        down, up = Displacement.along(estimate, -self.lr), Displacement.along(estimate, self.lr)
        here, below, above = oracle.values(Part.TOTAL, [None, down, up]).tolist()
        sign = 0.0 if here <= min(below, above) else 1.0 if below <= above else -1.0
        return LazyTensors(len(estimate), lambda i: estimate[i] * sign)


class ForwardGradient(ZerothOrderOptimizer["ForwardGradient.Settings"]):
    """Descent along 1/q sum_i (gradient . u_i) u_i, the slopes by forward-mode differentiation (arXiv 2202.08587).

    Unbiased for the gradient itself: without a radius there is no smoothing and no rounding of differences.
    """

    source = "arXiv 2202.08587"
    queries_per_step = "1q directional"
    estimator = ForwardMode

    class Settings(DirectionsSettings):
        name: Literal["forward_gradient"] = "forward_gradient"
