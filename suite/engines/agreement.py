"""Compares the results of two engines on one checkpoint, probe by probe.

Generated texts may diverge where the model itself is undecided: two orders of summation give logits that differ in
their last bits, and which of two equally likely tokens wins is chance. So texts are compared up to the first token that
differs, and the distance of the two best logits there says whether it was a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from suite.engines.questions import Questions
from suite.engines.sampling import drawn
from suite.engines.scores import Score, ScoreRequest
from suite.engines.transformers.continuation import GenerationRequest
from suite.models.checkpoints import Checkpoint
from suite.models.encoding import Encoder
from suite.models.likelihood import logits_at
from tasks.task import Probe, ProbeKind


class ComparableEngine(Protocol):
    """An engine that also returns token ids and scores, from which samples are made."""

    name: str

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int] | None]: ...

    def likelihoods(
        self, checkpoint: Checkpoint, requests: Sequence[ScoreRequest]
    ) -> tuple[list[Score], list[float]]: ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two engines agree on one probe.

    Attributes:
        n: number of texts that were generated or scored.
        same: of these, the ones that are equal, or were scored with the same most likely tokens.
        ties: of these, the ones that diverge at a tie.
        worst: largest difference between two log-probabilities of a token, in nats; None where text is generated.
    """

    probe: str
    kind: ProbeKind
    n: int
    same: int
    ties: int
    worst: float | None = None

    @property
    def parted(self) -> int:
        """Number of texts that differ without a tie, or in a most likely token."""
        return self.n - self.same - self.ties


def tie(dtype: torch.dtype) -> float:
    """Logits that are closer than this may swap ranks: 1e-4 in fp32, or 64 times the dtype's epsilon if larger."""
    return max(1e-4, 64 * torch.finfo(dtype).eps)


def agreement(
    checkpoint: Checkpoint, probes: Sequence[Probe], encoder: Encoder, one: ComparableEngine, other: ComparableEngine
) -> list[Agreement]:
    """How both engines agree, probe by probe.

    Raises:
        CheckpointError, EngineError, ...: one of them failed.
    """
    return [_probe_agreement(checkpoint, probe, encoder, one, other) for probe in probes]


def _probe_agreement(
    checkpoint: Checkpoint, probe: Probe, encoder: Encoder, one: ComparableEngine, other: ComparableEngine
) -> Agreement:
    questions = Questions(encoder, [probe])
    if probe.kind is not ProbeKind.GENERATE:
        pairs = [
            (a, b)
            for a, b in zip(
                *(e.likelihoods(checkpoint, questions.score_requests)[0] for e in (one, other)), strict=True
            )
            if a.logprobs
        ]
        worst = max((abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)), default=0.0)
        return Agreement(probe.name, probe.kind, len(pairs), sum(a.right == b.right for a, b in pairs), 0, worst)
    answers = zip(*(e.continuations(checkpoint, questions) for e in (one, other)), strict=True)

    def text_of(new: Sequence[int] | None) -> str | None:
        return None if new is None else encoder.decode(new, probe.stop)  # the text ends before a stop text

    differ = [
        (r, a, b) for r, (a, b) in zip(questions.generation_requests, answers, strict=True) if text_of(a) != text_of(b)
    ]
    ties = 0
    if differ:
        model = checkpoint.model()
        ties = sum(
            a is not None and b is not None and _diverges_at_tie(model, request, a, b) for request, a, b in differ
        )
    n = len(questions.generation_requests)
    return Agreement(probe.name, probe.kind, n, n - len(differ), ties)


@torch.inference_mode()
def _diverges_at_tie(model: PreTrainedModel, request: GenerationRequest, a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether either token was possible at the first difference: the two best logits are almost equal, or the random
    number of a sampled token lies almost on the boundary between two tokens."""
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ids = torch.tensor([[*request.prompt, *a[:common]]], device=model.device)
    logits = logits_at(model, [ids.shape[1] - 1], input_ids=ids)[0].float()
    close = tie(model.dtype)
    if request.draw is None:
        best = logits[0].topk(2).values
        return bool(best[0] - best[1] < close)
    at = request.draw.uniform(common)
    around = [max(0.0, at - close), min(at + close, 1.0)]
    low, high = drawn(logits.expand(2, -1), [request.draw.temperature] * 2, around).tolist()
    return low != high
