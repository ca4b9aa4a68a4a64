"""Whether two engines say the same of one checkpoint, question by question.

Texts may part where the model itself is undecided: two orders of summation give logits that differ in their last bits,
and the better of two equal tokens is chance. So texts are compared up to the first token that differs, and the distance
of the two best logits there says whether it was a tie.
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
from suite.engines.transformers.decoding import GenerationRequest
from suite.models.checkpoints import Checkpoint
from suite.models.encoding import Encoder
from suite.models.likelihood import logits_at
from tasks.task import Probe, ProbeKind


class Answering(Protocol):
    """An engine that gives ids and numbers instead of samples."""

    name: str

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int]]: ...

    def likelihoods(self, checkpoint: Checkpoint, asked: Sequence[ScoreRequest]) -> tuple[list[Score], list[float]]: ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two engines agree on one probe.

    Attributes:
        n: texts that were generated or scored.
        same: texts that are the same, or scored with the same most likely tokens.
        ties: texts that part at a tie.
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
        """Texts that differ without a tie, or in a most likely token."""
        return self.n - self.same - self.ties


def tie(dtype: torch.dtype) -> float:
    """Logits that are closer than this may change places: 1e-4 in fp32, and 64 roundings of 1 where that is more."""
    return max(1e-4, 64 * torch.finfo(dtype).eps)


def agreement(
    checkpoint: Checkpoint, probes: Sequence[Probe], encoder: Encoder, one: Answering, other: Answering
) -> list[Agreement]:
    """What both say, probe by probe.

    Raises:
        CheckpointError, EngineError, ...: whatever keeps one of them from answering.
    """
    return [_of_probe(checkpoint, probe, encoder, one, other) for probe in probes]


def _of_probe(checkpoint: Checkpoint, probe: Probe, encoder: Encoder, one: Answering, other: Answering) -> Agreement:
    questions = Questions(encoder, [probe])
    if probe.kind is not ProbeKind.GENERATE:
        pairs = [
            (a, b)
            for a, b in zip(*(e.likelihoods(checkpoint, questions.asked)[0] for e in (one, other)), strict=True)
            if a.logprobs
        ]
        worst = max((abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)), default=0.0)
        return Agreement(probe.name, probe.kind, len(pairs), sum(a.right == b.right for a, b in pairs), 0, worst)
    answers = zip(*(e.continuations(checkpoint, questions) for e in (one, other)), strict=True)

    def said(new: Sequence[int]) -> str:
        return encoder.decode(new, probe.stop)  # what follows a stop text is nobody's answer

    differ = [(r, a, b) for r, (a, b) in zip(questions.requests, answers, strict=True) if said(a) != said(b)]
    ties = 0
    if differ:
        model = checkpoint.model()
        ties = sum(_parts_at_a_tie(model, request, a, b) for request, a, b in differ)
    n = len(questions.requests)
    return Agreement(probe.name, probe.kind, n, n - len(differ), ties)


@torch.inference_mode()
def _parts_at_a_tie(model: PreTrainedModel, request: GenerationRequest, a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether the first token that differs could have been either: the two best logits are as good as equal, or the
    random number of a drawn token lies as good as between two tokens."""
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
