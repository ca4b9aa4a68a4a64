"""The transformers engine: in this process, on whatever torch runs on.

All probes of a checkpoint share their passes: a text that two probes score is scored once, a prompt that two probes
generate from is generated from once, and what texts share at their beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from suite.engines.base import Job, JobResult
from suite.engines.questions import QuestionBook, Questions
from suite.engines.scores import Score, ScoreRequest, scored
from suite.engines.transformers.decoding import continued
from suite.engines.transformers.gradient_norms import gradient_norm
from suite.engines.transformers.shortcut import Shortcut
from suite.models.checkpoints import Checkpoint, dtype_of, load_state, skeleton
from suite.models.encoding import Encoded, Encoder

REVISION = 2
"""Raised when the same question to the same weights gives other numbers, be it in the last bits."""

ROW_TOKENS = 512
"""Positions of a packed row on a CPU, where a pass is as efficient with these as with more, and attention, which
grows with the row, still costs a sixth of the rest. Other devices take as many as a batch has."""


class TransformersEngine:
    """One model at a time.

    Args:
        encoder: text to ids and back.
        batch_tokens: positions per batch, padding and new tokens included.
    """

    batch_invariant = False

    def __init__(self, encoder: Encoder, *, dtype: str, device: torch.device, batch_tokens: int = 4096) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.device = device
        self.batch_tokens = batch_tokens
        self.row_tokens = min(ROW_TOKENS, batch_tokens) if device.type == "cpu" else batch_tokens
        self.name = f"transformers-{dtype}"
        self.version = transformers.__version__
        self._model: PreTrainedModel | None = None
        self._architecture: tuple[str, torch.dtype] | None = None
        self._packing, self._decoding = Shortcut(), Shortcut()
        self._questions = QuestionBook(encoder)

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": self.version,
            "revision": REVISION,
            "batch_tokens": self.batch_tokens,
        }

    def submit(self, jobs: Iterable[Job]) -> Iterator[JobResult]:
        for job in jobs:
            try:
                questions = self._questions.of(job.probes)
                with self._holding(job.checkpoint) as model:
                    scores, norms = self._likelihoods(model, questions.asked, questions.differentiated)
                    new = self._continuations(model, questions)
                evaluation = JobResult(job.key, questions.samples(scores, norms, new))
            except Exception as error:
                evaluation = JobResult(job.key, {}, error.with_traceback(None))
            yield evaluation

    def likelihoods(
        self, checkpoint: Checkpoint, asked: Sequence[ScoreRequest], differentiated: Sequence[Encoded] = ()
    ) -> tuple[list[Score], list[float]]:
        """The part of the answers that generates nothing: scores of texts, and gradient norms.

        Raises:
            CheckpointError, ...: whatever keeps the checkpoint from being asked.
        """
        if not asked and not differentiated:
            return [], []
        with self._holding(checkpoint) as model:
            return self._likelihoods(model, asked, differentiated)

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int]]:
        """The other part: what follows the prompts.

        Raises:
            CheckpointError, ...: whatever keeps the checkpoint from being asked.
        """
        with self._holding(checkpoint) as model:
            return self._continuations(model, questions)

    def _continuations(self, model: PreTrainedModel, questions: Questions) -> list[list[int]]:
        eos = self.encoder.eos
        return continued(model, questions.requests, eos=eos, decoding=self._decoding, **self._limits)

    def _likelihoods(
        self, model: PreTrainedModel, asked: Sequence[ScoreRequest], differentiated: Sequence[Encoded]
    ) -> tuple[list[Score], list[float]]:
        scores = scored(model, asked, packing=self._packing, **self._limits)
        return scores, [gradient_norm(model, text) for text in differentiated]

    @property
    def _limits(self) -> dict[str, int]:
        return {"row_tokens": self.row_tokens, "batch_tokens": self.batch_tokens}

    @contextmanager
    def _holding(self, checkpoint: Checkpoint) -> Iterator[PreTrainedModel]:
        """The checkpoint's weights, in the model that is already here where the architecture is the same."""
        try:
            state = checkpoint.state()
            architecture = (checkpoint.architecture / "config.json").read_text(), dtype_of(state)
            if self._model is None or self._architecture != architecture:
                self._model = skeleton(checkpoint.architecture, dtype_of(state)).to(self.device)
                self._architecture = architecture
                self._packing, self._decoding = Shortcut(), Shortcut()
            load_state(self._model, state)  # not in inference mode: its weights may be asked for a gradient
            del state
            with torch.inference_mode():
                yield self._model
        except BaseException:
            self._model = None  # it may hold a part of the weights, or the memory that lacked
            raise
