"""Weighted gradient ascent: the ascent on each token has a weight that depends on the token's probability p.

The papers write the loss as mean_t[-sg(w(p_t)) CE_t] with a stop-gradient sg. That has the right gradient and the wrong
values: the loss differences of a zeroth-order optimizer include changes of the weight, and for w = p they raise every
token that is less likely than 1/e. So the loss here is the function that has the published gradient,
    mean_t W(p_t),  W(p) = integral of w(s) / s from 0 to p,
and values, gradients and curvature agree. It falls to 0 as the answers are forgotten.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.models.encoding import Tokens
from suite.models.likelihood import LanguageModel, answer_labels, answer_logits, answer_mean, token_logprobs
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.batch import Batch

NODES = 16
"""Nodes of the quadrature, which is exact for integer beta2 up to 31."""


def wga(logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """mean p^beta / beta, whose gradient is that of -mean[sg(p^beta) CE] (Wang et al. 2025, arXiv 2502.19301).

    For beta = 1 it is the mean probability of the answers' tokens; for beta -> 0 its gradient is gradient ascent's.

    Args:
        logprobs, mask: (sequences, positions) log p of each token in nats, and whether it is an answer's.
    """
    return answer_mean((beta * logprobs).exp() / beta, mask)


def satimp(logprobs: Tensor, mask: Tensor, beta1: float, beta2: float) -> Tensor:
    """mean B(p; beta1, beta2 + 1), B(p; a, b) = integral of s^(a-1) (1-s)^(b-1) from 0 to p, the incomplete beta.

    Its gradient is that of -mean[sg(p^beta1 (1-p)^beta2) CE] (SatImp; Yang et al. 2025, arXiv 2505.11953): known
    tokens are weighted up (saturation), memorized ones down again (importance). With beta2 = 0 it is `wga`.
    """
    # s = p t leaves p^beta1 times the integral over t in [0, 1] of t^(beta1-1) (1 - p t)^beta2: Gauss-Jacobi.
    p = logprobs.exp()
    nodes, weights = _quadrature(beta1)
    total = torch.zeros_like(p)
    for node, weight in zip(nodes, weights, strict=True):
        total = total + weight * (1 - node * p) ** beta2
    return answer_mean((beta1 * logprobs).exp() * total, mask)


@cache
def _quadrature(power: float) -> tuple[list[float], list[float]]:
    """Nodes and weights of the integral over [0, 1] of t^(power-1) f(t)."""
    from scipy.special import roots_jacobi

    nodes, weights = roots_jacobi(NODES, 0.0, power - 1)
    return ((nodes + 1) / 2).tolist(), (weights / 2**power).tolist()


class WGA(Objective["WGA.Settings"]):
    """Weighted gradient ascent: each token has the weight p^beta (Wang et al. 2025, arXiv 2502.19301)."""

    class Settings(ObjectiveSettings):
        """beta: exponent of the weight."""

        name: Literal["wga"] = "wga"
        beta: float = Field(1.0, gt=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return wga(*_answer_logprobs(model, batch.forget), self.settings.beta)


class SatImp(Objective["SatImp.Settings"]):
    """Saturation and importance: each token has the weight p^beta1 (1-p)^beta2 (Yang et al. 2025, arXiv 2505.11953).

    Published settings disagree on which of the two losses is weighted by 0.1; here both weights are 1.
    """

    class Settings(ObjectiveSettings):
        """beta1: exponent of p, saturation. beta2: exponent of 1 - p, importance."""

        name: Literal["satimp"] = "satimp"
        beta1: float = Field(5.0, gt=0)
        beta2: float = Field(1.0, ge=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return satimp(*_answer_logprobs(model, batch.forget), self.settings.beta1, self.settings.beta2)


def _answer_logprobs(model: LanguageModel, tokens: Tokens) -> tuple[Tensor, Tensor]:
    labels, mask = answer_labels(tokens)
    return token_logprobs(answer_logits(model, tokens), labels, mask), mask
