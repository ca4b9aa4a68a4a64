"""The transformers engine: in this process, on whatever torch runs on.

All probes of a checkpoint share their passes: a text that two probes score is scored once, a prompt that two probes
generate from is generated from once, and what texts share at their beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from suite.checkpoints import Checkpoint, dtype_of, load_state, skeleton
from suite.engines.base import Evaluation, Job
from suite.engines.decoding import continued
from suite.engines.gradient_norms import gradient_norm
from suite.engines.questions import Questions
from suite.engines.scores import scored
from suite.engines.shortcut import Shortcut
from suite.text import Encoder
from tasks.task import Probe, Sample

REVISION = 2
"""Raised when the same question to the same weights gives other numbers, be it in the last bits."""

ROW_TOKENS = 512
"""Positions of a packed row on a CPU, where a pass is as efficient with these as with more, and attention, which
grows with the row, still costs a sixth of the rest. Other devices take as many as a batch has."""


REMEMBERED = 4
"""Sets of probes that stay tokenized: both splits, and those of an attack on each."""


class TransformersEngine:
    """One model at a time.

    Args:
        encoder: text to ids and back.
        batch_tokens: positions per batch, padding and new tokens included.
    """

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
        self._asked: dict[tuple[tuple[str, str], ...], Questions] = {}

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": self.version,
            "revision": REVISION,
            "batch_tokens": self.batch_tokens,
        }

    def submit(self, jobs: Iterable[Job]) -> Iterator[Evaluation]:
        for job in jobs:
            try:
                model = self._load(job.checkpoint)  # not in inference mode: its weights may be asked for a gradient
                with torch.inference_mode():
                    evaluation = Evaluation(job.key, self._ask(model, job.probes))
            except Exception as error:
                self._model = None  # it may hold a part of the weights, or the memory that lacked
                evaluation = Evaluation(job.key, {}, error.with_traceback(None))
            yield evaluation

    def _load(self, checkpoint: Checkpoint) -> PreTrainedModel:
        """The checkpoint's weights, in the model that is already here where the architecture is the same."""
        state = checkpoint.state()
        architecture = (checkpoint.architecture / "config.json").read_text(), dtype_of(state)
        if self._model is None or self._architecture != architecture:
            self._model = skeleton(checkpoint.architecture, dtype_of(state)).to(self.device)
            self._architecture = architecture
            self._packing, self._decoding = Shortcut(), Shortcut()
        load_state(self._model, state)
        return self._model

    def _questions(self, probes: Sequence[Probe]) -> Questions:
        """The questions as ids. Many checkpoints are asked the same ones, which are tokenized once."""
        asked = tuple((probe.name, probe.digest) for probe in probes)
        if asked not in self._asked:
            if len(self._asked) == REMEMBERED:
                self._asked.pop(next(iter(self._asked)))
            self._asked[asked] = Questions(self.encoder, probes)
        return self._asked[asked]

    def _ask(self, model: PreTrainedModel, probes: Sequence[Probe]) -> dict[str, tuple[Sample, ...]]:
        questions = self._questions(probes)
        limits = {"row_tokens": self.row_tokens, "batch_tokens": self.batch_tokens}
        scores = scored(model, questions.asked, packing=self._packing, **limits)
        norms = [gradient_norm(model, text) for text in questions.differentiated]
        new = continued(model, questions.requests, eos=self.encoder.eos, decoding=self._decoding, **limits)
        return questions.samples(scores, norms, new)
