"""The vLLM engine: generates text in the pool's warm engines, and scores texts wherever that is faster.

A job is split: its prompts go to the pool together with the checkpoint, and while vLLM generates, this process computes
the scores that it is faster at. Several jobs are pending at a time, so that an attack is prepared while another one is
being evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeGuard

import ray
import torch
from ray.actor import ActorHandle

from suite.cluster.connection import cluster_resources, connect
from suite.cluster.placement import PoolResources, local_resources, plan_placement
from suite.config.errors import EngineError
from suite.config.runtime import RuntimeSpec
from suite.engines.base import EngineSettings, Job, JobResult
from suite.engines.questions import QuestionCache, Questions
from suite.engines.scores import Score, ScoreRequest
from suite.engines.transformers.engine import TransformersEngine
from suite.engines.vllm.architectures import Architectures
from suite.engines.vllm.build import installed, pool_resources, usable
from suite.engines.vllm.model import EngineConfig, Prompt
from suite.engines.vllm.pool import find_pool, open_pool
from suite.engines.vllm.process import PoolReply, PoolRequest
from suite.engines.vllm.settings import VllmSettings
from suite.engines.vllm.transport import MemorySource, weights_of
from suite.models.checkpoints import Checkpoint, LoraCheckpoint, SavedCheckpoint, TensorCheckpoint
from suite.models.encoding import Encoded, Encoder

REVISION = 2
"""Incremented when the same request on the same weights gives other numbers, even in the last bits. 2: no answer where
logits are not finite, and none that NaN of the checkpoint before has spoilt."""

LENGTH = 2048
"""Maximum text length of an engine, in tokens, unless a text is longer or the model's context is shorter. A longer text
needs a new engine, and a larger maximum leaves less memory for keys and values."""

OWN_GPU_MEMORY, SHARED_GPU_MEMORY = 0.9, 0.45
"""Default share of a GPU's memory for an engine: on a GPU of its own, and on one that also holds a trial's weights,
gradients and optimizer states while the engine is awake."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has kernels for; adapters of lower rank are padded."""


def scored_by_vllm(request: ScoreRequest, gpu: bool, tensor_parallel: int) -> bool:
    """Whether vLLM scores a text. Otherwise the transformers engine does, which computes shared prefixes once.

    As measured (docs/performance.md), transformers is five times faster for all texts on a GPU; on a CPU vLLM is faster
    for texts that share no prefix. A model that does not fit on one GPU leaves no choice.
    """
    return tensor_parallel > 1 or not (gpu or request.choice or request.vocabulary)


@dataclass(frozen=True)
class _PendingJob:
    """A job whose request the pool is processing.

    Attributes:
        texts: its texts that vLLM scores. scores, norms: its results that were computed in this process.
    """

    job: Job
    questions: Questions
    reply: ray.ObjectRef[PoolReply]
    texts: Sequence[Encoded]
    scores: dict[Encoded, Score]
    norms: Sequence[float]


class VllmEngine:
    """Runs probes through the pool of this Ray job. Without a Ray connection, a local Ray is started.

    Args:
        encoder: text to ids and back.
        device: the device on which this process computes.
        alone: whether vLLM scores every text itself, to compare engines.
    """

    def __init__(
        self, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device, alone: bool = False
    ) -> None:
        self.settings, self.encoder, self.dtype, self.device = settings.own(VllmSettings), encoder, dtype, device
        self.alone = alone
        self.build = installed()
        self.batch_invariant = self.settings.batch_invariant and self.build.gpu
        self.name = f"vllm-{dtype}{'-invariant' if self.batch_invariant else ''}"
        self._transformers = TransformersEngine(encoder, dtype=dtype, device=device, batch_tokens=settings.batch_tokens)
        self.version = (
            self.build.version if alone else f"{self.build.version}+transformers-{self._transformers.version}"
        )
        self._questions = QuestionCache(encoder)
        self._architectures = Architectures()
        self._pool: tuple[ActorHandle, PoolResources] | None = None
        self.seconds: list[tuple[float, float]] = []
        """Seconds that the pool's engines took for each job: for loading its weights, and for running it."""

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": self.build.version,
            "revision": REVISION,
            "gpu": self.build.gpu,
            "tensor_parallel": self.settings.tensor_parallel,
            "likelihoods": None if self.alone else self._transformers.identity(),
        }

    def submit(self, jobs: Iterable[Job]) -> Iterator[JobResult]:
        pending: dict[ray.ObjectRef[PoolReply], _PendingJob] = {}
        for job in jobs:
            try:
                outcome = self._start_job(job)
            except Exception as error:
                yield JobResult(job.key, {}, error.with_traceback(None))
                continue
            if isinstance(outcome, JobResult):
                yield outcome
                continue
            pending[outcome.reply] = outcome
            # As many jobs as engines stay pending, so that no engine waits while the next job is prepared.
            yield from self._finished(pending, at_least=len(pending) - self.settings.engines)
        while pending:
            yield from self._finished(pending, at_least=1)

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int] | None]:
        """The new tokens after each prompt, to compare engines; None where the logits are not finite.

        Raises:
            CheckpointError, EngineError: the checkpoint cannot be loaded or run.
        """
        return self._continuations(self._wait_for(self._send(checkpoint, questions, [])))

    def likelihoods(self, checkpoint: Checkpoint, requests: Sequence[ScoreRequest]) -> tuple[list[Score], list[float]]:
        """Scores that vLLM itself computes, to compare engines.

        Raises:
            CheckpointError, EngineError: the checkpoint cannot be loaded or run.
        """
        nothing = Questions(self.encoder, [])
        return self._wait_for(self._send(checkpoint, nothing, [a.text for a in requests])).scores, []

    def _start_job(self, job: Job) -> _PendingJob | JobResult:
        """Send the pool's part of a job, and compute the rest in this process."""
        questions, checkpoint = self._questions.of(job.probes), job.checkpoint
        for_vllm, for_transformers = self._split_texts(questions.score_requests, checkpoint)
        if (self.alone or self.settings.tensor_parallel > 1) and (
            questions.gradient_texts or any(request.vocabulary for request in for_vllm)
        ):
            raise EngineError("vLLM gives no gradients and no moments over the vocabulary. Use the transformers engine")
        if not questions.generation_requests and not for_vllm:
            scores, norms = self._transformers.likelihoods(checkpoint, for_transformers, questions.gradient_texts)
            return JobResult(job.key, questions.samples(scores, norms, []))
        if not (isinstance(checkpoint, SavedCheckpoint) or _unmerged(checkpoint)):  # apply an edit once for both
            checkpoint = TensorCheckpoint(checkpoint.state(), checkpoint.architecture)
        texts = [request.text for request in for_vllm]
        reply = self._send(checkpoint, questions, texts)
        scores, norms = self._transformers.likelihoods(checkpoint, for_transformers, questions.gradient_texts)
        score_of = dict(zip((request.text for request in for_transformers), scores, strict=True))
        return _PendingJob(job, questions, reply, texts, score_of, norms)

    def _split_texts(
        self, requests: Sequence[ScoreRequest], checkpoint: Checkpoint
    ) -> tuple[list[ScoreRequest], list[ScoreRequest]]:
        """The texts that vLLM scores, and those that the transformers engine scores."""
        parallel = self.settings.tensor_parallel
        if self.alone or parallel > 1:
            return list(requests), []
        if _unmerged(checkpoint):
            return [], list(requests)
        context = self._architectures.of(checkpoint.architecture).context
        split: tuple[list[ScoreRequest], list[ScoreRequest]] = [], []
        for request in requests:
            fits = context is None or len(request.text.ids) < context  # vLLM generates one token after it
            split[not (fits and scored_by_vllm(request, self.build.gpu, parallel))].append(request)
        return split

    def _send(self, checkpoint: Checkpoint, questions: Questions, texts: Sequence[Encoded]) -> ray.ObjectRef[PoolReply]:
        """Send the pool's part of a job, and return a reference to the reply."""
        scheduler, resources = self._pool_and_resources()
        if self.device.type == "cuda" and resources.shared:
            torch.cuda.empty_cache()  # free the memory that training has left, for the engine
        # vLLM scores no texts with an unmerged adapter, so it is merged if there are any.
        adapter = checkpoint if _unmerged(checkpoint) and not texts else None
        architecture = self._architectures.of(checkpoint.architecture)
        if architecture.context and any(len(text.ids) >= architecture.context for text in texts):
            raise EngineError(
                f"a text fills all of the model's {architecture.context} positions, and vLLM needs one more to score "
                "it. Use the transformers engine"
            )
        weights = weights_of(adapter.base if adapter else checkpoint, architecture.layout)
        request = PoolRequest(
            [ray.put(weights)] if isinstance(weights, MemorySource) else weights,
            self._prompts(questions),
            tuple(texts),
            adapter.path if adapter else None,
        )
        longest = max([questions.longest, *(len(text.ids) + 1 for text in texts)])
        config = self._engine_config(checkpoint, longest, resources, adapter.rank if adapter else 0)
        return scheduler.answer.remote(config, request)

    def _pool_and_resources(self) -> tuple[ActorHandle, PoolResources]:
        """The pool's scheduler, and the resources of its engines."""
        if self._pool is None:
            needed = pool_resources(self.settings)
            runtime = RuntimeSpec(device="cpu" if self.device.type == "cpu" else "cuda")
            if not ray.is_initialized():
                usable()
                placement = plan_placement(local_resources(), needed, runtime)
                connect(first_gpu=placement.pool.shared or self.device.type == "cpu")
            scheduler = find_pool() or open_pool(plan_placement(cluster_resources(), needed, runtime).pool)
            resources: ray.ObjectRef[PoolResources] = scheduler.resources.remote()
            self._pool = scheduler, ray.get(resources)
        return self._pool

    def _engine_config(
        self, checkpoint: Checkpoint, longest: int, resources: PoolResources, rank: int = 0
    ) -> EngineConfig:
        settings, architecture = self.settings, self._architectures.of(checkpoint.architecture)
        length = max(LENGTH, 1024 * ceil(longest / 1024))
        return EngineConfig(
            checkpoint.architecture,
            architecture.config,
            self.dtype,
            min(length, architecture.context or length),
            gpu=self.build.gpu,
            tensor_parallel=settings.tensor_parallel,
            gpu_memory=settings.gpu_memory or (SHARED_GPU_MEMORY if resources.shared else OWN_GPU_MEMORY),
            cache_gib=settings.cache_gib,
            eager=settings.eager or not self.build.gpu,  # on a CPU compiling saves only a sixth of decoding
            batch_invariant=self.batch_invariant,
            sleeps=resources.shared,
            lora_rank=next(size for size in LORA_RANKS if size >= rank) if rank else 0,
        )

    def _prompts(self, questions: Questions) -> tuple[Prompt, ...]:
        return tuple(
            Prompt(r.prompt, r.limit, (*r.stop, *sorted(self.encoder.ends)), r.draw)
            for r in questions.generation_requests
        )

    def _finished(self, pending: dict[ray.ObjectRef[PoolReply], _PendingJob], at_least: int) -> Iterator[JobResult]:
        """Yield the results of finished jobs, waiting for at least so many."""
        ready, _ = (
            ray.wait(list(pending), num_returns=at_least)
            if at_least > 0
            else ray.wait(list(pending), num_returns=len(pending), timeout=0)
        )
        for reply in ready:
            pending_job = pending.pop(reply)
            try:
                yield self._result(pending_job, self._wait_for(reply))
            except Exception as error:
                yield JobResult(pending_job.job.key, {}, error.with_traceback(None))

    def _wait_for(self, reference: ray.ObjectRef[PoolReply]) -> PoolReply:
        reply = ray.get(reference)
        if reply.error is not None:
            raise reply.error
        self.seconds.append((reply.loading, reply.answering))
        return reply

    def _result(self, pending_job: _PendingJob, reply: PoolReply) -> JobResult:
        score_of = pending_job.scores | dict(zip(pending_job.texts, reply.scores, strict=True))
        scores = [score_of[request.text] for request in pending_job.questions.score_requests]
        return JobResult(
            pending_job.job.key, pending_job.questions.samples(scores, pending_job.norms, self._continuations(reply))
        )

    def _continuations(self, reply: PoolReply) -> list[list[int] | None]:
        return [ids[:-1] if ids and ids[-1] in self.encoder.ends else ids for ids in reply.continuations]


def _unmerged(checkpoint: Checkpoint) -> TypeGuard[LoraCheckpoint]:
    """Whether the checkpoint is an adapter that vLLM can apply without merging it."""
    return isinstance(checkpoint, LoraCheckpoint) and checkpoint.plain and checkpoint.rank <= LORA_RANKS[-1]
