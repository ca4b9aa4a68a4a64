"""The transformers engine: runs in this process, on any device that torch supports.

All probes of a checkpoint share their forward passes: a text that two probes score is scored once, a prompt that two
probes continue is continued once, and a prefix that texts share is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import transformers
from transformers import GenerationConfig

from suite.config.settings import Settings as NamedSettings
from suite.engines.base import EngineKind, EngineSettings, Job, JobResult
from suite.engines.questions import QuestionCache, Questions
from suite.engines.scores import Score, ScoreRequest, scored
from suite.engines.transformers.decoding import continued
from suite.engines.transformers.gradient_norms import gradient_norm
from suite.engines.transformers.shortcut import Shortcut
from suite.models.checkpoints import Checkpoint, dtype_of, load_state, skeleton
from suite.models.encoding import Encoded, Encoder
from suite.models.layers import carries_state, counts_columns

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

REVISION = 2
"""Incremented when the same request on the same weights gives other numbers, even in the last bits."""

ROW_TOKENS = 512
"""Positions of a packed row on a CPU. A pass is no more efficient with more of them, and attention, whose cost grows
with the row, still costs a sixth of the rest. On other devices a row has as many positions as a batch."""


class TransformersEngine(EngineKind):
    """transformers, in the trial's own process, with one model in memory at a time; the engine by default.

    Args:
        encoder: text to ids and back.
        batch_tokens: positions per batch, including padding and new tokens.
    """

    class Settings(NamedSettings):
        name: Literal["transformers"] = "transformers"

    batch_invariant = False

    @classmethod
    def build(cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Self:
        return cls(encoder, dtype=dtype, device=device, batch_tokens=settings.batch_tokens)

    @classmethod
    def finding(cls) -> tuple[str, str]:
        default = EngineSettings.model_fields["engine"].default == cls.key()
        return transformers.__version__, f"measure.engine={cls.key()}{', the engine by default' if default else ''}"

    def __init__(self, encoder: Encoder, *, dtype: str, device: torch.device, batch_tokens: int = 4096) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.device = device
        self.batch_tokens = batch_tokens
        self.row_tokens = min(ROW_TOKENS, batch_tokens) if device.type == "cpu" else batch_tokens
        self.name = f"{self.key()}-{dtype}"
        self.version = transformers.__version__
        self._model: CausalLM | None = None
        self._architecture: tuple[str, torch.dtype] | None = None
        self._packing, self._decoding = Shortcut(), Shortcut()
        self._questions = QuestionCache(encoder)

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
                with self._loaded(job.checkpoint) as model:
                    scores, norms = self._likelihoods(model, questions.score_requests, questions.gradient_texts)
                    new = self._continuations(model, questions)
                result = JobResult(job.key, questions.samples(scores, norms, new))
            except Exception as error:
                result = JobResult(job.key, {}, error.with_traceback(None))
            yield result

    def likelihoods(
        self, checkpoint: Checkpoint, requests: Sequence[ScoreRequest], gradient_texts: Sequence[Encoded] = ()
    ) -> tuple[list[Score], list[float]]:
        """The results that need no generation: scores of texts, and gradient norms.

        Raises:
            CheckpointError, ...: the checkpoint cannot be loaded or run.
        """
        if not requests and not gradient_texts:
            return [], []
        with self._loaded(checkpoint) as model:
            return self._likelihoods(model, requests, gradient_texts)

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int] | None]:
        """The new tokens after each prompt.

        Raises:
            CheckpointError, ...: the checkpoint cannot be loaded or run.
        """
        with self._loaded(checkpoint) as model:
            return self._continuations(model, questions)

    def _continuations(self, model: CausalLM, questions: Questions) -> list[list[int] | None]:
        ends = self.encoder.ends
        return continued(model, questions.generation_requests, ends=ends, decoding=self._decoding, **self._limits)

    def _likelihoods(
        self, model: CausalLM, requests: Sequence[ScoreRequest], gradient_texts: Sequence[Encoded]
    ) -> tuple[list[Score], list[float]]:
        scores = scored(model, requests, packing=self._packing, **self._limits)
        return scores, [gradient_norm(model, text) for text in gradient_texts]

    @property
    def _limits(self) -> dict[str, int]:
        return {"row_tokens": self.row_tokens, "batch_tokens": self.batch_tokens}

    @contextmanager
    def _loaded(self, checkpoint: Checkpoint) -> Iterator[CausalLM]:
        """The model with the checkpoint's weights. The model in memory is reused if the architecture is the same."""
        try:
            state = checkpoint.state()
            architecture = (checkpoint.architecture / "config.json").read_text(), dtype_of(state)
            if self._model is None or self._architecture != architecture:
                self._model = skeleton(checkpoint.architecture, dtype_of(state)).to(self.device)
                self._model.generation_config = GenerationConfig()  # answers are the model's own: docs/prompts.md
                self._architecture = architecture
                # A state is passed on, and columns are counted, whatever masks and position ids say.
                sound = not (carries_state(self._model) or counts_columns(self._model))
                self._packing, self._decoding = Shortcut(sound), Shortcut(sound)
            load_state(self._model, state)  # not in inference mode: gradient norms need ordinary tensors
            del state
            with torch.inference_mode():
                yield self._model
        except BaseException:
            self._model = None  # it may hold only a part of the weights, or the memory that was missing
            raise
