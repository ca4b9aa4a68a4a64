"""Gradient norms: a membership score that says how strongly a text would still change the weights."""

from __future__ import annotations

import torch

from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import mean_nll


def gradient_norm(model: torch.nn.Module, text: Encoded) -> float:
    """Mean over the parameters (tensors, tied ones once) of the L2 norm of the gradient of the answer's mean NLL.

    In nats per unit of the parameter. The model stays in eval mode: with dropout a text would get another score each
    time (GradNorm as in open-unlearning, arXiv 2506.12618).
    """
    with torch.inference_mode(False), torch.enable_grad():  # engines run everything else in inference mode
        parameters = [p for p in model.parameters() if p.requires_grad]
        tokens = Tokens.collate([text], parameters[0].device)
        gradients = torch.autograd.grad(mean_nll(model, tokens), parameters, allow_unused=True)
    norms = [0.0 if g is None else float(torch.linalg.vector_norm(g, dtype=torch.float32)) for g in gradients]
    return sum(norms) / len(norms)
