"""The process that vLLM has to itself, an actor, and what crosses into it and back."""

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
from suite.engines.vllm.model import Prompt, StaleWeights, Start, VllmModel
from suite.engines.vllm.transport import FileSource, WeightSource
from suite.models.encoding import Encoded


@dataclass(frozen=True)
class PoolRequest:
    """A checkpoint and all that it is asked.

    Attributes:
        weights: files, or a reference to bytes in Ray's object store, in a list so that only the engine fetches them.
        adapter: folder of a LoRA adapter that is to lie beside them.
    """

    weights: WeightSource | list[Any]
    asks: tuple[Prompt, ...]
    texts: tuple[Encoded, ...] = ()
    adapter: Path | None = None


@dataclass(frozen=True)
class Reply:
    """What became of an order.

    Attributes:
        new: continuations, in the order of `asks`. scores: in the order of `texts`.
        error: what went wrong instead. broken: the engine cannot be used any more.
        loading, answering: seconds that the engine took.
    """

    new: list[list[int]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    error: Exception | None = None
    broken: bool = False
    loading: float = 0.0
    answering: float = 0.0


class EngineProcess:
    """The process that vLLM has to itself."""

    def start(self, start: Start) -> str | None:
        """Start vLLM. What went wrong, if anything."""
        try:
            self._model = VllmModel(start)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        self._loaded: FileSource | None = None
        return None

    def pid(self) -> int:
        return os.getpid()

    def rest(self) -> None:
        """Leave the GPU to others until the next order."""
        self._model.sleep()
        self._loaded = None

    def answer(self, order: PoolRequest) -> Reply:
        """What becomes of an order."""
        try:
            weights = ray.get(order.weights[0]) if isinstance(order.weights, list) else order.weights
        except RayError as error:  # whoever sent them is gone; nobody waits for this answer
            return Reply(error=EngineError(f"the weights were lost on the way to the engine: {error}"))
        try:
            loading = 0.0 if weights == self._loaded else self._model.load(weights)
            self._loaded = weights if isinstance(weights, FileSource) else None  # bytes would stay in memory
            self._model.adapt(order.adapter)
            begun = time.perf_counter()
            new, scores = self._model.continued(order.asks), self._model.scored(order.texts)
            answering = time.perf_counter() - begun
        except Exception as error:
            return Reply(error=plain(error), broken=True)
        return Reply(new, scores, loading=loading, answering=answering)


def plain(error: Exception) -> Exception:
    """An error that any process can read."""
    if isinstance(error, CheckpointError | StaleWeights | EngineError):
        return type(error)(str(error))
    return EngineError(f"{type(error).__name__}: {error}")
