"""The Ray actor in which vLLM runs alone, and the requests and replies that it exchanges."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from suite.config.errors import CheckpointError, EngineError
from suite.engines.scores import Score
from suite.engines.vllm.model import EngineConfig, Prompt, StaleWeights, VllmModel
from suite.engines.vllm.transport import FileSource, WeightSource
from suite.models.encoding import Encoded


@dataclass(frozen=True)
class PoolRequest:
    """A checkpoint, with the prompts to continue and the texts to score.

    Attributes:
        weights: files, or a reference to bytes in Ray's object store, in a list so that only the engine fetches them.
        adapter: folder of a LoRA adapter that is applied without merging it.
    """

    weights: WeightSource | list[Any]
    prompts: tuple[Prompt, ...]
    texts: tuple[Encoded, ...] = ()
    adapter: Path | None = None


@dataclass(frozen=True)
class PoolReply:
    """The result of a request.

    Attributes:
        continuations: new tokens, in the order of `prompts`; None where the logits are not finite.
        scores: in the order of `texts`.
        error: what went wrong instead. broken: whether the engine cannot be used any more.
        loading, answering: seconds that the engine took to load the weights, and to run the request.
    """

    continuations: list[list[int] | None] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    error: Exception | None = None
    broken: bool = False
    loading: float = 0.0
    answering: float = 0.0


class EngineProcess:
    """The process in which vLLM runs, and nothing else."""

    def start(self, config: EngineConfig) -> str | None:
        """Start vLLM. Returns what went wrong, if anything."""
        try:
            self._model = VllmModel(config)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        self._loaded: FileSource | None = None
        return None

    def pid(self) -> int:
        return os.getpid()

    def sleep(self) -> None:
        """Free the GPU until the next request."""
        self._model.sleep()
        self._loaded = None

    def answer(self, request: PoolRequest) -> PoolReply:
        """Load the weights of a request and compute its reply."""
        try:
            weights = ray.get(request.weights[0]) if isinstance(request.weights, list) else request.weights
        except RayError as error:  # their sender is gone, so nobody waits for this reply
            return PoolReply(error=EngineError(f"the weights were lost on the way to the engine: {error}"))
        try:
            loading = 0.0 if weights == self._loaded else self._model.load(weights)
            self._loaded = weights if isinstance(weights, FileSource) else None  # bytes would stay in memory
            self._model.adapt(request.adapter)
            begun = time.perf_counter()
            continuations, scores = self._model.generate(request.prompts), self._model.score(request.texts)
            answering = time.perf_counter() - begun
        except Exception as error:
            return PoolReply(error=picklable(error), broken=True)
        return PoolReply(continuations, scores, loading=loading, answering=answering)


def picklable(error: Exception) -> Exception:
    """The error in a form that any process can unpickle."""
    if isinstance(error, CheckpointError | StaleWeights | EngineError):
        return type(error)(str(error))
    return EngineError(f"{type(error).__name__}: {error}")
