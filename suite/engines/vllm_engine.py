"""The vLLM engine: text is generated in the pool's warm engines, likelihoods are computed where they are faster.

A job is taken apart: its prompts go to the pool with the checkpoint, and while vLLM generates, this process scores the
texts. A few jobs are under way at a time, so that an attack is carried out while the one before is being asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeGuard

import ray
import torch
from ray.actor import ActorHandle

from suite.checkpoints import (
    Checkpoint,
    Layout,
    LoraCheckpoint,
    SavedCheckpoint,
    TensorCheckpoint,
    context_of,
    skeleton,
)
from suite.cluster import connect, room
from suite.engines.base import EngineError, Evaluation, Job
from suite.engines.pool import Order, Reply, open_pool
from suite.engines.questions import QuestionBook, Questions
from suite.engines.scores import Score
from suite.engines.transformers_engine import TransformersEngine
from suite.engines.vllm_build import installed
from suite.engines.vllm_model import Ask, Start
from suite.engines.weights import HeldWeights, weights_of
from suite.placing import PoolShape, check_here, places
from suite.spec import MeasureSpec, RuntimeSpec
from suite.text import Encoder

REVISION = 1
"""Raised when the same question to the same weights gives other numbers, be it in the last bits."""

LENGTH = 2048
"""Positions that an engine has room for, unless a text is longer or the model reads less: a longer text needs another
engine, and more of them leave less room for keys and values."""


def likelihoods_by(tensor_parallel: int) -> str:
    """Which engine scores texts: `transformers` computes what they share once, and vLLM's own way reads no cache, so it
    is slower on every kind of probe (docs/performance.md). A model that one GPU does not hold leaves no choice."""
    return "transformers" if tensor_parallel == 1 else "vllm"


@dataclass(frozen=True)
class _Flight:
    """A job that the pool is at work on."""

    job: Job
    questions: Questions
    reply: Any
    scores: Sequence[Score] | None
    norms: Sequence[float]


class VllmEngine:
    """Answers probes through the pool of this Ray job; a Ray of this machine alone is started where there is none.

    Args:
        encoder: text to ids and back.
        device: where this process computes likelihoods.
        scored_by: which engine scores texts, `transformers` or `vllm`.
    """

    def __init__(
        self,
        measure: MeasureSpec,
        encoder: Encoder,
        *,
        dtype: str,
        device: torch.device,
        scored_by: str | None = None,
    ) -> None:
        self.measure, self.encoder, self.dtype, self.device = measure, encoder, dtype, device
        self.build = installed()
        asked = measure.vllm
        self.scored_by = scored_by or likelihoods_by(asked.tensor_parallel)
        self.batch_invariant = asked.batch_invariant and self.build.gpu
        self.name = f"vllm-{dtype}{'-invariant' if self.batch_invariant else ''}"
        self._here = TransformersEngine(encoder, dtype=dtype, device=device, batch_tokens=measure.batch_tokens)
        apart = self.scored_by == "transformers"
        self.version = f"{self.build.version}{f'+transformers-{self._here.version}' if apart else ''}"
        self._questions = QuestionBook(encoder)
        self._layouts: dict[str, Layout] = {}
        self._pool: tuple[ActorHandle, PoolShape] | None = None
        self.seconds: list[tuple[float, float]] = []
        """What the pool's engines took for each job: for loading its weights, and for answering."""

    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = {"engine": self.name, "version": self.build.version, "revision": REVISION}
        if self.scored_by == "transformers":
            found["likelihoods"] = self._here.identity()
        if self.measure.vllm.tensor_parallel > 1:
            found["tensor_parallel"] = self.measure.vllm.tensor_parallel
        return found

    def submit(self, jobs: Iterable[Job]) -> Iterator[Evaluation]:
        flying: dict[Any, _Flight] = {}
        for job in jobs:
            try:
                started = self._started(job)
            except Exception as error:
                yield Evaluation(job.key, {}, error.with_traceback(None))
                continue
            if isinstance(started, Evaluation):
                yield started
                continue
            flying[started.reply] = started
            # One more than there are engines, so that none waits while the next job is prepared.
            yield from self._landed(flying, at_least=len(flying) - self.measure.vllm.engines)
        while flying:
            yield from self._landed(flying, at_least=1)

    def _landed(self, flying: dict[Any, _Flight], at_least: int) -> Iterator[Evaluation]:
        """Jobs that are done, at least so many."""
        wait = {"num_returns": at_least} if at_least > 0 else {"num_returns": len(flying), "timeout": 0}
        for reply in ray.wait(list(flying), **wait)[0]:
            flight = flying.pop(reply)
            try:
                yield self._evaluated(flight, ray.get(reply))
            except Exception as error:
                yield Evaluation(flight.job.key, {}, error.with_traceback(None))

    def _started(self, job: Job) -> _Flight | Evaluation:
        """Send a job's part to the pool, and do the part that is done here."""
        questions = self._questions.of(job.probes)
        here = self.scored_by == "transformers"
        if not here and (questions.differentiated or any(asked.vocabulary for asked in questions.asked)):
            raise EngineError("vLLM gives no gradients and no moments over the vocabulary. Use the transformers engine")
        if not questions.requests and (here or not questions.asked):
            scores, norms = self._here.likelihoods(job.checkpoint, questions)
            return Evaluation(job.key, questions.samples(scores, norms, []))
        checkpoint = job.checkpoint
        if not (isinstance(checkpoint, SavedCheckpoint) or _beside(checkpoint)):  # an edit is made once, for both
            checkpoint = TensorCheckpoint(checkpoint.state(), checkpoint.architecture)
        reply = self._ordered(checkpoint, questions, texts=not here)
        scores, norms = self._here.likelihoods(checkpoint, questions) if here else (None, [])
        return _Flight(job, questions, reply, scores, norms)

    def _ordered(self, checkpoint: Checkpoint, questions: Questions, texts: bool) -> Any:
        """Send the pool's part of a job; a reference to the reply."""
        # With an adapter beside the weights vLLM scores no texts on a CPU: there it is merged.
        adapter = checkpoint if _beside(checkpoint) and not (texts and questions.asked) else None
        desk, shape = self._opened()
        if self.device.type == "cuda" and shape.shared:
            torch.cuda.empty_cache()  # what training has left belongs to the engine now
        weights = weights_of(adapter.base if adapter else checkpoint, self._layout(checkpoint))
        order = Order(
            [ray.put(weights)] if isinstance(weights, HeldWeights) else weights,
            self._asks(questions),
            tuple(asked.text for asked in questions.asked) if texts else (),
            adapter.path if adapter else None,
        )
        return desk.answer.remote(self._start(adapter or checkpoint, questions.longest, shape), order)

    def _asks(self, questions: Questions) -> tuple[Ask, ...]:
        return tuple(Ask(r.prompt, r.limit, (*r.stop, self.encoder.eos), r.draw) for r in questions.requests)

    def _opened(self) -> tuple[ActorHandle, PoolShape]:
        """The pool, and what its engines take."""
        if self._pool is None:
            runtime = RuntimeSpec(device=self.device.type)
            if ray.is_initialized():
                where = places(room(), self.measure, runtime)
            else:
                where = check_here(self.measure, runtime)
                connect(first_gpu=where.pool.shared or self.device.type == "cpu")
            desk = open_pool(where.pool)
            self._pool = desk, ray.get(desk.taken.remote())
        return self._pool

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int]]:
        """What follows the prompts, for whoever compares engines.

        Raises:
            CheckpointError, EngineError: whatever keeps the checkpoint from being asked.
        """
        return self._continuations(self._reply(checkpoint, questions))

    def likelihoods(self, checkpoint: Checkpoint, questions: Questions) -> tuple[list[Score], list[float]]:
        """What vLLM itself makes of the texts, for whoever compares engines.

        Raises:
            CheckpointError, EngineError: whatever keeps the checkpoint from being asked.
        """
        return self._reply(checkpoint, questions).scores, []

    def _reply(self, checkpoint: Checkpoint, questions: Questions) -> Reply:
        reply = ray.get(self._ordered(checkpoint, questions, texts=True))
        if reply.error is not None:
            raise reply.error
        return reply

    def _continuations(self, reply: Reply) -> list[list[int]]:
        eos = self.encoder.eos
        return [ids[:-1] if ids and ids[-1] == eos else ids for ids in reply.new]

    def _evaluated(self, flight: _Flight, reply: Reply) -> Evaluation:
        if reply.error is not None:
            return Evaluation(flight.job.key, {}, reply.error)
        self.seconds.append((reply.loading, reply.answering))
        scores = reply.scores if flight.scores is None else flight.scores
        samples = flight.questions.samples(scores, flight.norms, self._continuations(reply))
        return Evaluation(flight.job.key, samples)

    def _start(self, checkpoint: Checkpoint, longest: int, shape: PoolShape) -> Start:
        asked, context = self.measure.vllm, context_of(checkpoint.architecture)
        rank = next(r for r in LORA_RANKS if r >= checkpoint.rank) if _beside(checkpoint) else 0
        length = max(LENGTH, 1024 * ceil(longest / 1024))
        return Start(
            checkpoint.architecture,
            _config(checkpoint),
            self.dtype,
            min(length, context) if context else length,
            gpu=self.build.gpu,
            tensor_parallel=asked.tensor_parallel,
            gpu_memory=asked.gpu_memory or (SHARED_MEMORY if shape.shared else ALONE_MEMORY),
            cache_gib=asked.cache_gib,
            batch_invariant=self.batch_invariant,
            sleeps=shape.shared,
            lora_rank=rank,
        )

    def _layout(self, checkpoint: Checkpoint) -> Layout:
        config = _config(checkpoint)
        if config not in self._layouts:
            self._layouts[config] = Layout.of(skeleton(checkpoint.architecture, getattr(torch, self.dtype)))
        return self._layouts[config]


SHARED_MEMORY = 0.45
"""Share of a GPU's memory that an engine takes where a trial needs the rest: the trial's weights, gradients and states
stay where they are while the engine is awake."""

ALONE_MEMORY = 0.9


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that vLLM has kernels for; adapters of lower rank are padded."""


def _beside(checkpoint: Checkpoint) -> TypeGuard[LoraCheckpoint]:
    """Whether the checkpoint is an adapter that vLLM can leave unmerged."""
    return isinstance(checkpoint, LoraCheckpoint) and checkpoint.plain and checkpoint.rank <= LORA_RANKS[-1]


def _config(checkpoint: Checkpoint) -> str:
    """The architecture's config without what says nothing about it, so that equal architectures share an engine."""
    config = json.loads((checkpoint.architecture / "config.json").read_text())
    for name in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(name, None)
    return json.dumps(config, sort_keys=True)
