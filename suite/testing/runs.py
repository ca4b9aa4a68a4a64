"""Runs of a smoothing and an optimizer, on functions and on the small language model, that can be taken up again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suite.adapters import ADAPTERS
from suite.objectives import OBJECTIVES, Objective, Reference
from suite.optimizers import OPTIMIZERS, Optimizer, Run
from suite.oracle.base import Diverged, Metered
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle
from suite.oracle.state import Stateful
from suite.smoothing import SMOOTHINGS, Smoothing
from suite.testing.base import Case
from suite.testing.functions import Functions
from suite.testing.language_model import copies, full_batch, llama, same_bits

STEPS = 6
"""Steps of a run: all that a method does with its `example` happens in so many."""
MIDDLE = (STEPS // 2,)
LOST = "ignore:a zeroth-order difference was lost"
"""A warning that runs this short may give."""
NPO, PLAIN, ADAM, HYBRID = (
    Case(kind) for kind in (OBJECTIVES["npo"], SMOOTHINGS["none"], OPTIMIZERS["adam"], OPTIMIZERS["hybrid"])
)
FULL = Case(ADAPTERS["full"])
ONE_PER_GRADE = tuple(Case(OPTIMIZERS[name]) for name in ("sophia", "adam", "sign_sgd", "r_adazo", "hybrid"))


@dataclass
class Trained:
    """A run: an oracle, a smoothing around it and an optimizer.

    Attributes:
        oracle: of the language model or of functions.
        directed: whether the steps are those of a part of another optimizer, which asks for the direction alone.
        batches: the batch of each step.
    """

    oracle: Any
    smoothed: Smoothing[Any]
    metered: Metered
    optimizer: Optimizer[Any]
    directed: bool = False
    batches: Callable[[int], Batch] = full_batch

    def steps(self, numbers: Iterable[int] = range(STEPS)) -> Trained:
        for number in numbers:
            self.oracle.batch = self.batches(number)
            if self.directed:
                self.optimizer.apply(self.optimizer.direction(self.metered), self.optimizer.lr)
                self.optimizer.steps_done += 1
            else:
                self.optimizer.step(self.metered)
            self.metered.stepped()
        return self

    def weights(self) -> list[Tensor]:
        """Those that would be exported."""
        ends = self.smoothed.final_weights()
        return copies(self.oracle.parameters if ends is None else ends)

    @property
    def _parts(self) -> dict[str, Stateful]:
        parts = {"oracle": self.oracle, "smoothing": self.smoothed, "optimizer": self.optimizer}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)}

    def state(self) -> dict[str, Any]:
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
        return saved | {"weights": copies(self.oracle.parameters)}

    def load(self, saved: dict[str, Any]) -> Trained:
        with torch.no_grad():
            torch._foreach_copy_(list(self.oracle.parameters), saved["weights"])
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        return self


def _llama(*seed_and_dtype: Any) -> Any:
    """The model, with torch's own random numbers left alone."""
    with torch.random.fork_rng([]):
        return llama(*seed_and_dtype)


def objective_of(case: Case, dtype: torch.dtype = torch.float32, **changes: Any) -> Objective[Any]:
    """The objective, with a model of other weights as the one before unlearning."""
    before = Reference(_llama(1, dtype).requires_grad_(False))
    made: Objective[Any] = case.kind(case.settings(**changes), before)
    return made


def run_of(
    oracle: LossOracle | Functions,
    smoothing: Case = PLAIN,
    optimizer: Case = ADAM,
    *,
    directed: bool = False,
    seed: int = 5,
    **changes: Any,
) -> Trained:
    """A run of `STEPS` steps; the changes are of the optimizer's settings."""
    run = Run(STEPS, seed)
    smoothed = smoothing.kind(oracle, smoothing.settings(), run)
    settings = optimizer.settings(**changes)
    return Trained(
        oracle, smoothed, Metered(smoothed), optimizer.kind(settings, oracle.parameters, run), directed
    )  # fmt: skip


def trained(
    objective: Case = NPO, smoothing: Case = PLAIN, optimizer: Case = ADAM, adapter: Case = FULL, **changes: Any
) -> Trained:
    """A run on the small language model."""
    model = _llama()
    adapter.kind(adapter.settings(), model, 0)
    return run_of(LossOracle(model, objective_of(objective), seed=3), smoothing, optimizer, **changes)


def check_moves(what: str, run: Trained) -> None:
    """Check that a run ends with finite weights that have moved."""
    before = copies(run.oracle.parameters)
    try:
        run.steps()
    except Diverged as error:
        raise AssertionError(f"{what}: {error}. If it is the step size in `example`, lower it") from error
    assert all(bool(w.isfinite().all()) for w in run.weights()), (
        f"{what}: the weights are not finite after {STEPS} steps. If it is the step size in `example`, lower it"
    )
    assert not same_bits(before, run.oracle.parameters), (
        f"{what}: no weight has moved in {STEPS} steps. Choose settings in `example` with which they do"
    )


def check_repeats(what: str, made: Callable[[], Trained]) -> None:
    """Check that a run ends in the same bits again, whatever torch's own random numbers are, and leaves those alone."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(made().steps().weights())
        if seed == 1:
            assert torch.equal(torch.rand(3), expected), (
                f"{what} draws from torch's global generator. Draw with `suite.oracle.noise` and a key of `run.seed`"
            )
    assert same_bits(*ends), (
        f"{what}: two runs with one seed end in other weights. Draw with `suite.oracle.noise` and a key of `run.seed`, "
        "and leave class attributes as they are"
    )


def check_resumed(
    what: str, part: Callable[[Trained], Any], made: Callable[[], Trained], after: Iterable[int] = (0, STEPS // 2)
) -> None:
    """Check that a run goes on bit for bit from its state, saved to a file.

    Args:
        part: what the message is about.
        after: how many steps; half of the steps is an odd number, so a curvature of every second step is due.
    """
    uninterrupted = made().steps().weights()
    for done in after:
        half = made().steps(range(done))
        file = io.BytesIO()
        torch.save(half.state(), file)
        half.steps(range(done, STEPS))  # the saved state must not change with the run
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for _ in range(2 if isinstance(half.oracle, Functions) and done else 1):  # nor with a run that goes on from it
            resumed = made().load(saved).steps(range(done, STEPS))
            tested = part(resumed)
            others = sorted(vars(tested).keys() - {*tested.state, "settings", "parameters", "run", "oracle"})
            assert same_bits(uninterrupted, resumed.weights()), (
                f"{what}: a run that goes on from its state after {done} steps ends in other weights. `state` names "
                f"{', '.join(tested.state) or 'nothing'}: add every attribute that a run changes (of those that are "
                f"left, look at {', '.join(others) or 'what is kept elsewhere than in self'})"
            )
