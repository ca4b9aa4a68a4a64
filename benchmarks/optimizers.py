"""Speed of the optimizers: a zeroth-order step over its forward passes, displacements in one pass over one by one, a
hybrid over its parts, Adam over a plain torch loop. Ratios within one run, on a GPU where there is one.

    python benchmarks/optimizers.py [--json FILE] [--threads N] [--repeats N] [--models 27m,1m,pocket]

`textbook` does what published code does: noise is drawn four times from one generator, and added to and subtracted from
the weights in place. It serves as the baseline; it leaves weights changed, and the benchmark measures how many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from suite.adapters import ADAPTERS
from suite.models.encoding import Tokens
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS, Optimizer, Run
from suite.optimizers.estimates import ZerothOrder
from suite.oracle import noise
from suite.oracle.base import Displacement, Part
from suite.oracle.batch import Batch
from suite.oracle.directions import Directions, Kind
from suite.oracle.loss import LossOracle
from suite.storage.environment import peak_bytes

MODELS = {
    "27m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 7,
        "vocab_size": 8192,
        "batch": (8, 64),
    },
    "pocket": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "vocab_size": 2048,
        "batch": (8, 20),
    },
    "1m": {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 2, "vocab_size": 1024, "batch": (16, 48)},
}
KINDS = ("sphere", "gaussian", "rademacher", "low_rank")
STEPS = 10**6
"""More steps than any benchmark makes, so that no schedule ends."""


def oracle_of(name: str, device: torch.device, retain: bool = True) -> LossOracle:
    """A random Llama of this size, and gradient difference on a batch of forget and one of retain texts.

    Args:
        retain: if false, gradient ascent on the forget texts alone: one forward pass per value instead of two.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(MODELS[name])
    sequences, length = shape.pop("batch")
    config = LlamaConfig(**shape, num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval().to(device)

    def texts() -> Tokens:
        ids = torch.randint(0, config.vocab_size, (sequences, length), device=device)
        answer = torch.ones_like(ids, dtype=torch.bool)
        answer[:, 0] = False
        return Tokens(ids, answer, 1)

    kind = OBJECTIVES["graddiff" if retain else "gradient_ascent"]
    oracle = LossOracle(model, kind(kind.Settings()))
    oracle.batch = Batch(texts(), texts())
    return oracle


def optimizer_of(oracle: LossOracle, name: str, **settings: object) -> Optimizer:
    kind = OPTIMIZERS[name]
    return kind(kind.Settings(lr=1e-9, **settings), oracle.parameters, Run(STEPS))


class Clock:
    """Times work on a device. The two sides of a ratio alternate, so that a machine that slows down slows both."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def seconds(self, work: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def median(self, work: Callable[[], object]) -> float:
        work()
        return statistics.median(self.seconds(work) for _ in range(self.repeats))

    def ratio(self, one: Callable[[], object], other: Callable[[], object]) -> float:
        one(), other()
        return statistics.median(self.seconds(one) / self.seconds(other) for _ in range(self.repeats))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Textbook:
    """ZO-SGD with q samples in place: noise from a seed, drawn for +r, for -2r, for +r and for the update."""

    def __init__(self, oracle: LossOracle, samples: int, radius: float = 1e-3, lr: float = 1e-9) -> None:
        self.oracle, self.samples, self.radius, self.lr = oracle, samples, radius, lr
        self.seed = 0

    def step(self, oracle: object = None) -> None:
        for _ in range(self.samples):
            self.seed += 1
            difference = self.probe()
            self._add(-self.lr * difference / (2 * self.radius * self.samples))

    @torch.no_grad()
    def probe(self) -> float:
        self._add(self.radius)
        ahead = float(self.oracle.values(Part.TOTAL, [None]))
        self._add(-2 * self.radius)
        behind = float(self.oracle.values(Part.TOTAL, [None]))
        self._add(self.radius)
        return ahead - behind

    @torch.no_grad()
    def _add(self, scale: float) -> None:
        device = self.oracle.parameters[0].device
        draw = torch.Generator(device=device).manual_seed(self.seed)
        for p in self.oracle.parameters:
            p.add_(torch.randn(p.shape, generator=draw, device=device, dtype=p.dtype), alpha=scale)


def changed_by_one_probe(oracle: LossOracle) -> float:
    before = [p.detach().clone() for p in oracle.parameters]
    Textbook(oracle, 1).probe()
    changed = sum(int((p != b).sum()) for p, b in zip(oracle.parameters, before, strict=True))
    return changed / sum(p.numel() for p in before)


def zeroth_order(name: str, clock: Clock, samples: list[int]) -> Iterator[tuple[str, float]]:
    """Time of ZO-SGD steps over 2q forward passes."""
    oracle = oracle_of(name, clock.device)
    for q in samples:
        forwards = [None] * (2 * q)
        for kind in KINDS if q == samples[0] else KINDS[:2]:
            optimizer = optimizer_of(oracle, "zo_sgd", zo=ZerothOrder(samples=q, direction=kind, radius=1e-2))
            yield (
                f"{name}_{kind}_q{q}",
                clock.ratio(
                    lambda optimizer=optimizer: optimizer.step(oracle),
                    lambda forwards=forwards: oracle.values(Part.TOTAL, forwards),
                ),
            )
    q = samples[0]
    forwards = [None] * (2 * q)
    others: dict[str, Callable[[], object]] = {
        "r_adazo": optimizer_of(oracle, "r_adazo", zo=ZerothOrder(samples=q, radius=1e-2)).step,
        "memory_seed": optimizer_of(oracle, "zo_sgd", zo=ZerothOrder(samples=q, radius=1e-2, memory="seed")).step,
        "textbook": Textbook(oracle, q).step,
    }
    for label, step in others.items():
        yield (
            f"{name}_{label}_q{q}",
            clock.ratio(lambda step=step: step(oracle), lambda: oracle.values(Part.TOTAL, forwards)),
        )
    yield f"{name}_textbook_changed_share", changed_by_one_probe(oracle)
    alone = oracle_of(name, clock.device, retain=False)
    optimizer = optimizer_of(alone, "zo_sgd", zo=ZerothOrder(samples=q, radius=1e-2))
    yield (
        f"{name}_sphere_q{q}_forget_alone",
        clock.ratio(lambda: optimizer.step(alone), lambda: alone.values(Part.TOTAL, forwards)),
    )


def shares(name: str, clock: Clock) -> Iterator[tuple[str, float]]:
    """The parts of a step with one sample, each timed alone, as shares of the step. Drawing overlaps with the rest."""
    oracle = oracle_of(name, clock.device)
    noise_vectors = noise.gaussian(oracle.parameters, (0,))
    moved = [Displacement.along(noise_vectors, 1e-2), Displacement.along(noise_vectors, -1e-2)]
    optimizer = optimizer_of(oracle, "zo_sgd", zo=ZerothOrder(radius=1e-2))
    step = clock.median(lambda: optimizer.step(oracle))
    forwards = clock.median(lambda: oracle.values(Part.TOTAL, [None, None]))
    parts = {
        "forwards": forwards,
        "drawing": clock.median(lambda: noise.fill(noise_vectors, (1,))),
        "moving": clock.median(lambda: oracle.values(Part.TOTAL, moved)) - forwards,
        "update": clock.median(lambda: optimizer.apply(noise_vectors, 1e-9)),
    }
    for part, seconds in parts.items():
        yield f"{name}_share_{part}", seconds / step
    yield f"{name}_step_seconds", step


def places(name: str, clock: Clock, samples: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Loss values a second at 2q displacements that are asked one by one, and the time of one query for all over that.

    Displacements are dense ones of all weights, low-rank ones of all weights, and dense ones of LoRA of rank 1 on one
    layer's keys and values.
    """
    for kind in ("dense", "low_rank", "adapter"):
        oracle = oracle_of(name, clock.device)
        if kind == "adapter":
            lora = ADAPTERS["lora"]
            lora(lora.Settings(rank=1, targets=("*layers.0.*k_proj", "*layers.0.*v_proj")), oracle.model, 0)
            batch = oracle.batch
            oracle = LossOracle(oracle.model, oracle.objective)
            oracle.batch = batch
        directions = Directions(Kind.LOW_RANK if kind == "low_rank" else Kind.SPHERE, oracle.parameters, 0)
        for q in samples:
            draws = [(directions if kind == "low_rank" else directions.held)(n).tensors for n in range(q)]
            displacements = [Displacement.along(d, s) for d in draws for s in (1e-2, -1e-2)]

            def one_by_one(displacements=displacements, oracle=oracle) -> None:
                for displacement in displacements:
                    oracle.values(Part.TOTAL, [displacement])

            def together(displacements=displacements, oracle=oracle) -> None:
                oracle.values(Part.TOTAL, displacements)

            yield f"{name}_{kind}_values_a_second_q{q}", 2 * q / clock.median(one_by_one)
            if kind != "dense":  # those of all weights never share a pass
                yield f"{name}_{kind}_together_over_apart_q{q}", clock.ratio(together, one_by_one)


def hybrid(name: str, clock: Clock) -> Iterator[tuple[str, float]]:
    """Time of two first-order and two zeroth-order steps as a hybrid over its parts; and of one mixed step."""
    oracle = oracle_of(name, clock.device)
    zo = ZerothOrder(radius=1e-2)
    alternating = optimizer_of(oracle, "hybrid", block=4, zo=zo)
    mixed = optimizer_of(oracle, "hybrid", kind="mix", mix_weight=0.5, zo=zo)
    first, zeroth = optimizer_of(oracle, "adam"), optimizer_of(oracle, "r_adazo", zo=zo)

    def steps(*optimizers: Optimizer) -> Callable[[], None]:
        return lambda: [optimizer.step(oracle) for optimizer in optimizers] and None

    yield f"{name}_hybrid_over_parts", clock.ratio(steps(*[alternating] * 4), steps(first, first, zeroth, zeroth))
    yield f"{name}_mix_over_parts", clock.ratio(steps(mixed), steps(first, zeroth))


def adam(name: str, clock: Clock) -> Iterator[tuple[str, float]]:
    """Time of Adam through an oracle over a plain loop of forward, backward and torch's fused AdamW."""
    oracle = oracle_of(name, clock.device)
    ours = optimizer_of(oracle, "adam")
    bare = torch.optim.AdamW(oracle.parameters, lr=1e-9, weight_decay=0.0, fused=True)
    model, batch, objective = oracle.model, oracle.batch, oracle.objective

    def step() -> None:
        loss = objective.forget(model, batch) + objective.retain(model, batch)
        loss.backward()
        bare.step()
        bare.zero_grad()

    yield f"{name}_adam_over_bare", clock.ratio(lambda: ours.step(oracle), step)


def peak(name: str, method: str, device: torch.device) -> float:
    """Peak memory of two steps, beyond the model and one forward pass, in copies of the weights."""
    if device.type == "cuda":
        return _peak_here(name, method, device)
    command = [sys.executable, __file__, "--peak", f"{name},{method}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak_here(name: str, method: str, device: torch.device) -> float:
    oracle = oracle_of(name, device)
    size = sum(p.numel() * p.element_size() for p in oracle.parameters)
    oracle.values(Part.TOTAL, [None])
    step: Callable[[], object]
    if method == "textbook":
        step = Textbook(oracle, 1).step
    else:
        optimizer = optimizer_of(oracle, "zo_sgd", zo=ZerothOrder(radius=1e-2, memory=method))
        step = lambda: optimizer.step(oracle)  # noqa: E731
    if device.type == "cuda":  # exclude the creation of the model
        torch.cuda.reset_peak_memory_stats()
        oracle.values(Part.TOTAL, [None])
    before = peak_bytes(device)
    step(), step()
    return (peak_bytes(device) - before) / size


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loss differences of a random model may be below the noise; nothing uses them
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object of numbers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", default="27m,1m")
    parser.add_argument("--samples", default="1,4,16")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with quiet():
        if arguments.peak:
            print(_peak_here(*arguments.peak.split(","), torch.device("cpu")))
            return
        figures: dict[str, float] = {}
        clock = Clock(device, arguments.repeats)
        label = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {arguments.threads} threads"
        table = Table("figure", label)
        samples = [int(q) for q in arguments.samples.split(",")]
        for name in arguments.models.split(","):
            for part in (
                zeroth_order(name, clock, samples),
                shares(name, clock),
                places(name, clock, samples),
                hybrid(name, clock),
                adam(name, clock),
            ):
                for key, value in part:
                    figures[key] = value
                    table.add_row(key, f"{value:.3f}")
                    print(f"{key:44s} {value:8.3f}", file=sys.stderr, flush=True)
            for method in ("keep", "seed", "textbook"):
                figures[f"{name}_peak_copies_{method}"] = value = peak(name, method, device)
                table.add_row(f"{name}_peak_copies_{method}", f"{value:.3f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
