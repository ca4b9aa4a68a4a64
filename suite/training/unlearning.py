"""The unlearning stage: steps of an optimizer on a smoothed oracle, from the target to the unlearned weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from suite.adapters import ADAPTERS
from suite.config.errors import SpecError, UnsuitableError
from suite.config.runtime import RuntimeSpec
from suite.models.checkpoints import Checkpoint, SavedCheckpoint, weights_digest
from suite.models.gradient_checkpointing import checkpoint_blocks
from suite.models.loading import save
from suite.models.outline import outline_of
from suite.objectives import OBJECTIVES, Reference
from suite.optimizers import OPTIMIZERS, Run
from suite.oracle.base import Diverged, Metered
from suite.oracle.loss import LossOracle
from suite.smoothing import SMOOTHINGS
from suite.spec.packages import packages_of
from suite.spec.trial import TrialSpec
from suite.storage.environment import Numeric, numeric, peak_bytes
from suite.storage.stages import Artifact, StageStore
from suite.training.anchors import Anchors
from suite.training.batches import Batches
from suite.training.saved_run import HasState, SavedRun
from suite.training.step_log import FILE, StepLog, onset
from suite.training.weight_change import change
from tasks.task import Example, Task, examples_digest

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

VERSION = 3
"""Increased when the same trial gives other weights or more metadata."""


OnCheckpoint = Callable[[int, Checkpoint], bool | None]
"""Called at each intermediate checkpoint with the steps made so far, over all requests. A true answer stops the run."""


class StoppedByScheduler(Exception):
    """A run was stopped at an intermediate checkpoint by who watches it. What was done is saved, so that it can go on.
    Internal: it reaches nobody but who watches, such as the runner.

    Attributes:
        step: steps made, over all requests.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by the scheduler at step {step}")
        self.step = step


class EarlyStopping(Protocol):
    """The early-stopping criterion of trials with `until`: the remaining knowledge of a checkpoint."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the criterion depends on besides the trial and its anchors, for the stage's key."""
        ...

    def knowledge(self, checkpoint: Checkpoint) -> float | None:
        """Knowledge on dev; None where it cannot be computed."""
        ...


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """One request to forget: its name and its texts."""

    name: str
    texts: tuple[Example, ...]


def requests(spec: TrialSpec, task: Task) -> list[ForgetRequest]:
    """The trial's forget requests in their order.

    Raises:
        SpecError: an unknown request, or requests that do not cover the forget set exactly once.
    """
    if spec.forget == ("all",):
        return [ForgetRequest("all", task.forget_examples())]
    if sorted(spec.forget) != sorted(task.forget):
        raise SpecError(
            f"forget: {list(spec.forget)}: every request of {task.name} once, in any order, or all "
            f"(requests: {', '.join(task.forget)})"
        )
    return [ForgetRequest(name, task.forget[name]) for name in spec.forget]


def unlearn(
    spec: TrialSpec,
    task: Task,
    anchors: Anchors,
    store: StageStore,
    runtime: RuntimeSpec,
    criterion: EarlyStopping | None = None,
    on_checkpoint: OnCheckpoint = lambda step, checkpoint: None,
) -> list[Artifact]:
    """The unlearned checkpoints, one stage per forget request, each starting from the one before.

    Args:
        criterion: early-stopping criterion, evaluated at intermediate checkpoints when the trial has `until`.
        on_checkpoint: called at every intermediate checkpoint in order, whoever made it and when.

    Raises:
        StoppedByScheduler: `on_checkpoint` said so.
    """
    stages: list[Artifact] = []
    steps_before = 0
    start = anchors.checkpoint("target")
    started_from = anchors.target.key
    for request in requests(spec, task):
        inputs = {
            "version": VERSION,
            "start": started_from,
            "reference": anchors.target.key,
            "forget": examples_digest(request.texts),
            "retain": examples_digest(task.retain),
            **({"block": anchors.base.block(task)} if task.block else {}),
            # The result does not depend on the request's name, and the anchors are in the key already.
            "trial": {k: v for k, v in spec.canonical.items() if k not in ("task", "model", "anchors", "forget")},
            # Where they are stored otherwise than in nn.Linear, the statistics once counted other weights.
            **({} if outline_of(start.architecture).as_before else {"matrices": 2}),
            **({"packages": packages} if (packages := packages_of(spec)) else {}),
            "judged_by": criterion.identity if criterion else None,
            "numeric": Numeric.of(runtime).as_dict(),
        }

        saved = SavedRun(store.unfinished("unlearn", inputs), runtime.save_minutes)
        watched = _Watched(on_checkpoint, steps_before)

        def compute(
            folder: Path,
            start: Checkpoint = start,
            request: ForgetRequest = request,
            saved: SavedRun = saved,
            watched: _Watched = watched,
        ) -> dict[str, Any]:
            def begun() -> _Unlearning:
                unlearning = _Unlearning(spec, task, anchors, request, start, device, saved)
                if runtime.gradient_checkpointing:
                    checkpoint_blocks(unlearning.model)
                return unlearning

            with numeric(runtime) as device:
                unlearning = begun()
                if saved.exists:
                    try:
                        unlearning.resume(folder)
                    except torch.OutOfMemoryError:
                        raise  # says nothing about the file
                    except Exception as error:  # whatever a damaged file raises
                        warnings.warn(f"{saved.folder}: cannot be gone on from ({error}); begun anew", stacklevel=2)
                        saved.discard()
                        unlearning = begun()
                return unlearning.run(folder, criterion, watched)

        stages.append(store.run("unlearn", inputs, compute))
        watched.tell(stages[-1].folder, stages[-1].meta["kept"])
        steps_before += stages[-1].meta["steps_done"]
        start, started_from = SavedCheckpoint(stages[-1].folder / "final"), stages[-1].key
    return stages


class _Watched:
    """Who watches a run: told of each intermediate checkpoint once.

    Args:
        steps_before: steps of earlier requests.
    """

    def __init__(self, on_checkpoint: OnCheckpoint, steps_before: int) -> None:
        self._on_checkpoint, self._steps_before = on_checkpoint, steps_before
        self._told: set[int] = set()

    def tell(self, folder: Path, kept: Sequence[int]) -> None:
        """Tell of the checkpoints of these steps in a folder.

        Raises:
            StoppedByScheduler: the run is to be stopped.
        """
        for step in kept:
            if step not in self._told:
                self._told.add(step)
                if self._on_checkpoint(self._steps_before + step, SavedCheckpoint(folder / f"step{step}")):
                    raise StoppedByScheduler(self._steps_before + step)


class _Unlearning:
    """Unlearning of one forget request: the model, the loss, the optimizer and the batches."""

    def __init__(
        self,
        spec: TrialSpec,
        task: Task,
        anchors: Anchors,
        request: ForgetRequest,
        start: Checkpoint,
        device: torch.device,
        saved: SavedRun,
    ) -> None:
        self.spec, self.encoder, self.device, self.saved = spec, anchors.base.encoder, device, saved
        self.model = start.model(device)
        trainable = 0
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in spec.trainable))
            trainable += parameter.requires_grad
        if not trainable:
            some = ", ".join(name for name, _ in list(self.model.named_parameters())[:3])
            raise UnsuitableError(f"trainable: {list(spec.trainable)} matches no parameter (there are {some}, ...)")
        self.adapter = ADAPTERS[spec.adapter.name](spec.adapter, self.model, spec.seed)

        kind = OBJECTIVES[spec.objective.name]
        reference = None
        if kind.uses_forget_reference or kind.needs_reference(spec.objective):
            # The reference is the model before any unlearning, also when this is not the first request.
            reference = Reference(anchors.checkpoint("target").model(device).requires_grad_(False))
        block = anchors.base.block(task)
        texts = (request.texts, task.retain)
        self.batches = Batches(*texts, self.encoder, spec.objective, task.name, device, reference, block)
        if not kind.needs_reference(spec.objective):
            reference = None  # its log-probabilities are in the batches; the model need not stay in memory
        self.objective = kind(spec.objective, reference)
        self.oracle = LossOracle(self.model, self.objective, seed=spec.seed)
        run = Run(spec.steps, spec.seed)
        self.smoothed = SMOOTHINGS[spec.smoothing.name](self.oracle, spec.smoothing, run)
        self.metered = Metered(self.smoothed)
        self.optimizer = OPTIMIZERS[spec.optimizer.name](spec.optimizer, self.oracle.parameters, run)
        self.done, self.kept, self.seconds = 0, list[int](), 0.0
        """Steps, the steps of the intermediate checkpoints, and time, of all processes that have worked on the run."""
        self.log = StepLog(self.oracle, self.optimizer, self.metered.queries)
        self._parts: dict[str, HasState] = {
            "oracle": self.oracle,
            "smoothing": self.smoothed,
            "optimizer": self.optimizer,
            "asked": self.metered.queries,
            "cost": self.oracle.queries,
            "log": self.log,
        }

    def resume(self, folder: Path) -> None:
        """Go on from what was saved; its intermediate checkpoints are copied into the folder."""
        own = self.saved.load(self.oracle.parameters, self._parts)
        self.done, self.kept, self.seconds = own["done"], own["kept"], own["seconds"]
        for step in self.kept:
            self.saved.bring(f"step{step}", folder)

    def _save(self, folder: Path, seconds: float) -> None:
        own = {"done": self.done, "kept": self.kept, "seconds": seconds}
        self.saved.save(self.oracle.parameters, self._parts, own, [folder / f"step{step}" for step in self.kept])

    def run(self, folder: Path, criterion: EarlyStopping | None, watched: _Watched) -> dict[str, Any]:
        """Make the steps, write the checkpoints into the folder, and return the stage's metadata.

        Raises:
            StoppedByScheduler: whoever watches the run says so at an intermediate checkpoint; it is saved.
        """
        watched.tell(folder, self.kept)
        spec, every, bound = self.spec, self.spec.checkpoints.every, self.spec.until_knowledge
        started, status, reason = time.perf_counter() - self.seconds, "ok", None
        for batch in self.batches.draw(spec.batch_size, spec.steps, spec.seed, self.done):
            self.oracle.batch = batch
            self.log.before()
            try:
                self.optimizer.step(self.metered)
                self.metered.stepped()
                self.log.after(self.done + 1, time.perf_counter() - started)
            except Diverged as error:
                self.log.after(self.done + 1, time.perf_counter() - started)
                status, reason = "diverged", f"step {self.done + 1} of {spec.steps}: {error}{self._began()}"
                break
            self.done += 1
            if every and self.done % every == 0 and self.done < spec.steps:
                self.kept.append(self.done)
                with self._exported() as model:
                    save(model, self.encoder.tokenizer, folder / f"step{self.done}")
                if bound is not None and criterion is not None:
                    knowledge = criterion.knowledge(SavedCheckpoint(folder / f"step{self.done}"))
                    if knowledge is not None and knowledge <= bound:
                        status, reason = "stopped", f"{spec.until} at step {self.done}"
                        break
                try:
                    watched.tell(folder, self.kept)
                except StoppedByScheduler:
                    self._save(folder, time.perf_counter() - started)
                    raise
            if self.done < spec.steps and self.saved.due():
                self._save(folder, time.perf_counter() - started)
        self.log.write(folder / FILE)
        observed = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes(self.device)}
        cost = self.oracle.queries.as_dict()
        with self._exported() as model:
            if not all(bool(p.isfinite().all()) for p in model.parameters()):
                reason = f"weights are not finite after step {self.done} of {spec.steps}{self._began()}"
                status = "diverged"
            save(model, self.encoder.tokenizer, folder / "final")
            digest = weights_digest(model)
            changed = change(self.adapter.before, model)
        return {
            "status": status,
            "reason": reason,
            "steps_done": self.done,
            "kept": self.kept,
            "weights": digest,
            "asked": self.metered.queries.as_dict(),
            "grade": str(self.metered.queries.grade()) if self.done else None,
            "cost": cost,
            **asdict(changed if status != "diverged" else changed.for_nonfinite_weights()),
            "drowned": getattr(self.optimizer, "lost_to_rounding", None),  # its name on the board, kept
            "observed": observed,
        }

    def _began(self) -> str:
        """Where a run began to diverge, as the end of its reason."""
        began = onset(self.log.columns())
        return f"; it began at step {began[0]}, where {began[1]} left its range" if began else ""

    @contextmanager
    def _exported(self) -> Iterator[CausalLM]:
        """The model with the weights to export now: smoothed, merged, edited, and rounded once. Training is unaffected.

        Intermediate checkpoints (also for the early-stopping criterion) and the final weights with their digest and
        statistics all come from here.
        """
        merged = self.adapter.merged(self.smoothed.final_weights())
        with self.adapter.exported(self.objective.edited(self.adapter.before, merged)):
            yield self.model
