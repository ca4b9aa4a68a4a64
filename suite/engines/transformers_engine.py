"""The transformers engine: batched by length, in this process, on whatever torch runs on.

All probes of a checkpoint share their passes: a text that two probes score is scored once, and a prompt that two probes
generate from is generated from once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import transformers

from suite.checkpoints import Checkpoint, dtype_of, load_state, skeleton
from suite.engines.base import Evaluation, Job
from suite.likelihood import answer_labels, answer_logits, token_logprobs
from suite.text import Encoded, Encoder, Tokens
from tasks.task import Item, Probe, ProbeKind, Sample

T = TypeVar("T")


class TransformersEngine:
    """One model at a time, batches of like length, padded on the right to score and on the left to generate.

    Args:
        encoder: text to ids and back.
        batch_tokens: positions per batch, padding and new tokens included.
    """

    def __init__(self, encoder: Encoder, *, dtype: str, device: torch.device, batch_tokens: int = 4096) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.device = device
        self.batch_tokens = batch_tokens
        self.name = f"transformers-{dtype}"
        self.version = transformers.__version__
        self._model: torch.nn.Module | None = None
        self._architecture: tuple[str, torch.dtype] | None = None

    def identity(self) -> dict[str, Any]:
        return {"engine": self.name, "version": self.version, "batch_tokens": self.batch_tokens}

    def submit(self, jobs: Iterable[Job]) -> Iterator[Evaluation]:
        for job in jobs:
            with torch.inference_mode():
                samples = self._ask(self._load(job.checkpoint), job.probes)
            yield Evaluation(job.key, samples)

    def _load(self, checkpoint: Checkpoint) -> torch.nn.Module:
        """The checkpoint's weights, in the model that is already here where the architecture is the same."""
        state = checkpoint.state()
        architecture = (checkpoint.architecture / "config.json").read_text(), dtype_of(state)
        if self._model is None or self._architecture != architecture:
            self._model = skeleton(checkpoint.architecture, dtype_of(state)).to(self.device)
            self._architecture = architecture
        load_state(self._model, state)
        return self._model

    def _ask(self, model: torch.nn.Module, probes: Sequence[Probe]) -> dict[str, tuple[Sample, ...]]:
        asked = [(probe, item) for probe in probes for item in probe.items]
        scored = {
            text: self.encoder.encode(*text)
            for probe, item in asked
            if probe.kind is not ProbeKind.GENERATE
            for text in _texts(probe, item)
        }
        prompts: dict[tuple[int, ...], int] = {}  # the longest limit that any probe sets
        for probe, item in asked:
            if probe.kind is ProbeKind.GENERATE:
                ids = self.encoder.prompt(item.prompt, item.style)
                prompts[ids] = max(prompts.get(ids, 0), probe.max_new_tokens)
        tokens = dict(zip(scored, self._score(model, list(scored.values())), strict=True))
        texts = dict(zip(prompts, self._generate(model, prompts), strict=True))

        def sample(probe: Probe, item: Item) -> Sample:
            if probe.kind is ProbeKind.GENERATE:
                new = texts[self.encoder.prompt(item.prompt, item.style)][: probe.max_new_tokens]
                return Sample(item.id, item.reference, generated=self.encoder.decode(new))
            answers = [tokens[text] for text in _texts(probe, item)]
            if probe.kind is ProbeKind.LOGPROB:
                logprobs, right = answers[0]
                return Sample(item.id, item.reference, token_logprobs=logprobs, token_correct=right)
            return Sample(
                item.id,
                item.reference,
                choice_logprobs=tuple(sum(logprobs) for logprobs, _ in answers),
                choice_lengths=tuple(len(logprobs) for logprobs, _ in answers),
                correct=item.correct,
            )

        return {probe.name: tuple(sample(probe, item) for item in probe.items) for probe in probes}

    def _score(
        self, model: torch.nn.Module, texts: Sequence[Encoded]
    ) -> list[tuple[tuple[float, ...], tuple[bool, ...]]]:
        """log p of each answer token, and whether the argmax is that token; in the order of `texts`."""
        results: list[Any] = [None] * len(texts)
        for batch in self._batches(range(len(texts)), lambda i: len(texts[i].ids)):
            tokens = Tokens.collate([texts[i] for i in batch], self.device)
            logits = answer_logits(model, tokens)
            labels, mask = answer_labels(tokens)
            logprobs, right = token_logprobs(logits, labels, mask), logits.argmax(-1) == labels
            for row, i in enumerate(batch):
                at = mask[row]
                results[i] = tuple(logprobs[row][at].tolist()), tuple(right[row][at].tolist())
        return results

    def _generate(self, model: torch.nn.Module, prompts: dict[tuple[int, ...], int]) -> list[tuple[int, ...]]:
        """New token ids after each prompt, greedily, up to its limit and without the end-of-text token."""
        keys = list(prompts)
        results: list[tuple[int, ...]] = [()] * len(keys)
        for batch in self._batches(range(len(keys)), lambda i: len(keys[i]) + prompts[keys[i]]):
            length = max(len(keys[i]) for i in batch)
            # The padding is masked, so any id will do for it; 0 exists in every vocabulary.
            ids = torch.tensor([[0] * (length - len(keys[i])) + list(keys[i]) for i in batch], device=self.device)
            real = torch.tensor([[0] * (length - len(keys[i])) + [1] * len(keys[i]) for i in batch], device=self.device)
            new = model.generate(
                input_ids=ids,
                attention_mask=real,
                max_new_tokens=max(prompts[keys[i]] for i in batch),
                do_sample=False,
                eos_token_id=self.encoder.eos,
                pad_token_id=self.encoder.eos,
            )[:, length:].tolist()
            for row, i in zip(new, batch, strict=True):
                end = row.index(self.encoder.eos) if self.encoder.eos in row else len(row)
                results[i] = tuple(row[: min(end, prompts[keys[i]])])
        return results

    def _batches(self, indices: Iterable[int], length: Any) -> Iterator[list[int]]:
        """Indices in batches of like length, the longest first, each within the token limit (or a single text)."""
        batch: list[int] = []
        for index in sorted(indices, key=lambda i: (-length(i), i)):
            if batch and (len(batch) + 1) * length(batch[0]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _texts(probe: Probe, item: Item) -> list[tuple[str, str, Any]]:
    """The (prompt, answer, style) texts that a probe scores for an item."""
    answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
    return [(item.prompt, answer, item.style) for answer in answers]
