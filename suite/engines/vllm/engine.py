"""The vLLM engine: text is generated in the pool's warm engines, and texts are scored where that is faster.

A job is taken apart: its prompts go to the pool with the checkpoint, and while vLLM is at work, this process scores
what it is better at. A few jobs are under way at a time, so that an attack is carried out while another is asked.
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
from suite.engines.base import Job, JobResult
from suite.engines.questions import QuestionBook, Questions
from suite.engines.scores import Score, ScoreRequest
from suite.engines.settings import EngineSettings
from suite.engines.transformers.engine import TransformersEngine
from suite.engines.vllm.architectures import Architectures
from suite.engines.vllm.build import installed, pool_resources, usable
from suite.engines.vllm.model import Prompt, Start
from suite.engines.vllm.pool import find_pool, open_pool
from suite.engines.vllm.process import PoolRequest, Reply
from suite.engines.vllm.transport import MemorySource, weights_of
from suite.models.checkpoints import Checkpoint, LoraCheckpoint, SavedCheckpoint, TensorCheckpoint
from suite.models.encoding import Encoded, Encoder

REVISION = 1
"""Raised when the same question to the same weights gives other numbers, be it in the last bits."""

LENGTH = 2048
"""Positions that an engine has room for, unless a text is longer or the model reads less: a longer text needs another
engine, and more of them leave less room for keys and values."""

ALONE, SHARED = 0.9, 0.45
"""Shares of a GPU's memory that an engine takes by default: of its own, and of one where a trial's weights, gradients
and states stay while the engine is awake."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that vLLM has kernels for; adapters of lower rank are padded."""


def by_vllm(asked: ScoreRequest, gpu: bool, tensor_parallel: int) -> bool:
    """Whether vLLM scores a text; else the transformers engine does, which computes what texts share once.

    As measured (docs/performance.md): on a GPU transformers is five times faster at all of them; on a CPU vLLM is at
    texts that share nothing. A model that one GPU does not hold leaves no choice.
    """
    return tensor_parallel > 1 or not (gpu or asked.choice or asked.vocabulary)


@dataclass(frozen=True)
class _InFlight:
    """A job that the pool is at work on.

    Attributes:
        texts: what vLLM scores of it. scores, norms: what was computed here.
    """

    job: Job
    questions: Questions
    reply: Any
    texts: Sequence[Encoded]
    scores: dict[Encoded, Score]
    norms: Sequence[float]


class VllmEngine:
    """Answers probes through the pool of this Ray job; a Ray of this machine alone is started where there is none.

    Args:
        encoder: text to ids and back.
        device: where this process computes.
        alone: whether vLLM scores every text itself, for whoever compares engines.
    """

    def __init__(
        self, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device, alone: bool = False
    ) -> None:
        self.settings, self.encoder, self.dtype, self.device, self.alone = settings, encoder, dtype, device, alone
        self.build = installed()
        self.batch_invariant = settings.vllm.batch_invariant and self.build.gpu
        self.name = f"vllm-{dtype}{'-invariant' if self.batch_invariant else ''}"
        self._here = TransformersEngine(encoder, dtype=dtype, device=device, batch_tokens=settings.batch_tokens)
        self.version = self.build.version if alone else f"{self.build.version}+transformers-{self._here.version}"
        self._questions = QuestionBook(encoder)
        self._architectures = Architectures()
        self._pool: tuple[ActorHandle, PoolResources] | None = None
        self.seconds: list[tuple[float, float]] = []
        """What the pool's engines took for each job: for loading its weights, and for answering."""

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "version": self.build.version,
            "revision": REVISION,
            "gpu": self.build.gpu,
            "tensor_parallel": self.settings.vllm.tensor_parallel,
            "likelihoods": None if self.alone else self._here.identity(),
        }

    def submit(self, jobs: Iterable[Job]) -> Iterator[JobResult]:
        flying: dict[Any, _InFlight] = {}
        for job in jobs:
            try:
                started = self._started(job)
            except Exception as error:
                yield JobResult(job.key, {}, error.with_traceback(None))
                continue
            if isinstance(started, JobResult):
                yield started
                continue
            flying[started.reply] = started
            # One more than there are engines, so that none waits while the next job is prepared.
            yield from self._landed(flying, at_least=len(flying) - self.settings.vllm.engines)
        while flying:
            yield from self._landed(flying, at_least=1)

    def continuations(self, checkpoint: Checkpoint, questions: Questions) -> list[list[int]]:
        """What follows the prompts, for whoever compares engines.

        Raises:
            CheckpointError, EngineError: whatever keeps the checkpoint from being asked.
        """
        return self._continued(self._waited(self._ordered(checkpoint, questions, [])))

    def likelihoods(self, checkpoint: Checkpoint, asked: Sequence[ScoreRequest]) -> tuple[list[Score], list[float]]:
        """What vLLM itself makes of texts, for whoever compares engines.

        Raises:
            CheckpointError, EngineError: whatever keeps the checkpoint from being asked.
        """
        nothing = Questions(self.encoder, [])
        return self._waited(self._ordered(checkpoint, nothing, [a.text for a in asked])).scores, []

    def _started(self, job: Job) -> _InFlight | JobResult:
        """Send a job's part to the pool, and do the part that is done here."""
        questions, checkpoint = self._questions.of(job.probes), job.checkpoint
        theirs, ours = self._divided(questions.asked, checkpoint)
        if (self.alone or self.settings.vllm.tensor_parallel > 1) and (
            questions.differentiated or any(asked.vocabulary for asked in theirs)
        ):
            raise EngineError("vLLM gives no gradients and no moments over the vocabulary. Use the transformers engine")
        if not questions.requests and not theirs:
            scores, norms = self._here.likelihoods(checkpoint, ours, questions.differentiated)
            return JobResult(job.key, questions.samples(scores, norms, []))
        if not (isinstance(checkpoint, SavedCheckpoint) or _beside(checkpoint)):  # an edit is made once, for both
            checkpoint = TensorCheckpoint(checkpoint.state(), checkpoint.architecture)
        texts = [asked.text for asked in theirs]
        reply = self._ordered(checkpoint, questions, texts)
        scores, norms = self._here.likelihoods(checkpoint, ours, questions.differentiated)
        of_text = dict(zip((asked.text for asked in ours), scores, strict=True))
        return _InFlight(job, questions, reply, texts, of_text, norms)

    def _divided(
        self, asked: Sequence[ScoreRequest], checkpoint: Checkpoint
    ) -> tuple[list[ScoreRequest], list[ScoreRequest]]:
        """The texts that vLLM scores, and those that are scored here."""
        parallel = self.settings.vllm.tensor_parallel
        if self.alone or parallel > 1:
            return list(asked), []
        if _beside(checkpoint):
            return [], list(asked)
        context = self._architectures.of(checkpoint.architecture).context
        divided: tuple[list[ScoreRequest], list[ScoreRequest]] = [], []
        for one in asked:
            fits = context is None or len(one.text.ids) < context  # vLLM goes on for a token after it
            divided[not (fits and by_vllm(one, self.build.gpu, parallel))].append(one)
        return divided

    def _ordered(self, checkpoint: Checkpoint, questions: Questions, texts: Sequence[Encoded]) -> Any:
        """Send the pool's part of a job; a reference to the reply."""
        desk, shape = self._opened()
        if self.device.type == "cuda" and shape.shared:
            torch.cuda.empty_cache()  # what training has left belongs to the engine now
        # With an adapter beside the weights vLLM scores no texts: for these it is merged.
        adapter = checkpoint if _beside(checkpoint) and not texts else None
        architecture = self._architectures.of(checkpoint.architecture)
        if architecture.context and any(len(text.ids) >= architecture.context for text in texts):
            raise EngineError(
                f"a text fills all of the model's {architecture.context} positions, and vLLM needs one more to score "
                "it. Use the transformers engine"
            )
        weights = weights_of(adapter.base if adapter else checkpoint, architecture.layout)
        order = PoolRequest(
            [ray.put(weights)] if isinstance(weights, MemorySource) else weights,
            self._asks(questions),
            tuple(texts),
            adapter.path if adapter else None,
        )
        longest = max([questions.longest, *(len(text.ids) + 1 for text in texts)])
        return desk.answer.remote(self._start(checkpoint, longest, shape, adapter.rank if adapter else 0), order)

    def _opened(self) -> tuple[ActorHandle, PoolResources]:
        """The pool, and what its engines take."""
        if self._pool is None:
            needed, runtime = pool_resources(self.settings.vllm), RuntimeSpec(device=self.device.type)
            if not ray.is_initialized():
                usable()
                where = plan_placement(local_resources(), needed, runtime)
                connect(first_gpu=where.pool.shared or self.device.type == "cpu")
            desk = find_pool() or open_pool(plan_placement(cluster_resources(), needed, runtime).pool)
            self._pool = desk, ray.get(desk.taken.remote())
        return self._pool

    def _start(self, checkpoint: Checkpoint, longest: int, shape: PoolResources, rank: int = 0) -> Start:
        asked, architecture = self.settings.vllm, self._architectures.of(checkpoint.architecture)
        length = max(LENGTH, 1024 * ceil(longest / 1024))
        return Start(
            checkpoint.architecture,
            architecture.config,
            self.dtype,
            min(length, architecture.context or length),
            gpu=self.build.gpu,
            tensor_parallel=asked.tensor_parallel,
            gpu_memory=asked.gpu_memory or (SHARED if shape.shared else ALONE),
            cache_gib=asked.cache_gib,
            eager=asked.eager or not self.build.gpu,  # on a CPU compiling is worth a sixth of decoding
            batch_invariant=self.batch_invariant,
            sleeps=shape.shared,
            lora_rank=next(size for size in LORA_RANKS if size >= rank) if rank else 0,
        )

    def _asks(self, questions: Questions) -> tuple[Prompt, ...]:
        return tuple(Prompt(r.prompt, r.limit, (*r.stop, self.encoder.eos), r.draw) for r in questions.requests)

    def _landed(self, flying: dict[Any, _InFlight], at_least: int) -> Iterator[JobResult]:
        """Jobs that are done, at least so many."""
        wait = {"num_returns": at_least} if at_least > 0 else {"num_returns": len(flying), "timeout": 0}
        for reply in ray.wait(list(flying), **wait)[0]:
            flight = flying.pop(reply)
            try:
                yield self._evaluated(flight, self._waited(reply))
            except Exception as error:
                yield JobResult(flight.job.key, {}, error.with_traceback(None))

    def _waited(self, reference: Any) -> Reply:
        reply = ray.get(reference)
        if reply.error is not None:
            raise reply.error
        self.seconds.append((reply.loading, reply.answering))
        return reply

    def _evaluated(self, flight: _InFlight, reply: Reply) -> JobResult:
        of_text = flight.scores | dict(zip(flight.texts, reply.scores, strict=True))
        scores = [of_text[asked.text] for asked in flight.questions.asked]
        return JobResult(flight.job.key, flight.questions.samples(scores, flight.norms, self._continued(reply)))

    def _continued(self, reply: Reply) -> list[list[int]]:
        return [ids[:-1] if ids and ids[-1] == self.encoder.eos else ids for ids in reply.new]


def _beside(checkpoint: Checkpoint) -> TypeGuard[LoraCheckpoint]:
    """Whether the checkpoint is an adapter that vLLM can leave unmerged."""
    return isinstance(checkpoint, LoraCheckpoint) and checkpoint.plain and checkpoint.rank <= LORA_RANKS[-1]
