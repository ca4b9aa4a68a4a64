"""How fast quantizers are: rounding to nearest over copying the checkpoint, and seconds of the others. On the CPU.

    python benchmarks/quantizing.py [--json FILE] [--threads N] [--repeats N] [--models 30m,135m] [--samples N]

Rounding has to read and to write every weight as copying does; what it computes in between happens in the processor's
cache. Ratios are taken within one run, the two sides in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from timing import ratio, seconds

from suite.attacks import attack
from suite.attacks.weights.calibration import edit_blocks
from suite.models.checkpoints import State

MODELS = {
    "30m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 8192}
    | {"num_attention_heads": 8, "num_key_value_heads": 8},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    | {"num_attention_heads": 9, "num_key_value_heads": 3},
}
ROUNDINGS = {"channel": {"per": "channel"}, "group": {"per": "group"}, "tensor": {"per": "tensor"}}
CALIBRATED = (
    {"name": "gptq", "bits": 4},
    {"name": "awq", "bits": 4},
    {"name": "prune", "by": "wanda", "sparsity": 0.5},
)
TOKENS = 64
"""Of a calibration text: a question with its answer."""


def model_of(name: str) -> torch.nn.Module:
    """A random Llama of this size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**MODELS[name], tie_word_embeddings=True)).eval()


def state_of(model: torch.nn.Module, dtype: torch.dtype) -> State:
    """Its weights, each tied one once, as in a file."""
    return {name: p.detach().to(dtype, copy=True) for name, p in model.named_parameters()}


def edit(state: State, **settings: object) -> Callable[[], object]:
    context = SimpleNamespace(device=torch.device("cpu"))
    kind = attack(settings)
    return lambda: kind.edited(state, None, context)


def roundings(name: str, repeats: int) -> Iterator[tuple[str, float]]:
    """Rounding to nearest over copying, and what each format of bitsandbytes takes."""
    model = model_of(name)
    for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        state = state_of(model, dtype)

        def copy(state: State = state) -> State:
            return {key: weight.clone() for key, weight in state.items()}

        yield f"{name}_{label}_copy_seconds", statistics.median(seconds(copy) for _ in range(repeats))
        for per, settings in ROUNDINGS.items():
            work = edit(state, name="rtn", bits=4, **settings)
            yield f"{name}_{label}_rtn_{per}_over_copy", ratio(work, copy, repeats)
    state = state_of(model, torch.float32)
    for form in ("nf4", "fp4", "int8"):
        work = edit(state, name=form)
        work()
        yield f"{name}_{form}_seconds", statistics.median(seconds(work) for _ in range(repeats))


def calibrated(name: str, samples: int) -> Iterator[tuple[str, float]]:
    """Seconds of GPTQ, AWQ and Wanda with so many texts, reading them included."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(0, MODELS[name]["vocab_size"], (samples, TOKENS), generator=draw).tolist()
    for settings in CALIBRATED:
        model, kind = model_of(name), attack(settings)
        work = seconds(lambda model=model, kind=kind: edit_blocks(model, texts, kind.edit, gram=kind.gram))
        yield f"{name}_{settings['name']}_seconds", work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object of numbers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--models", default="30m,135m")
    parser.add_argument("--samples", type=int, default=128, help="calibration texts; 0 leaves GPTQ and AWQ out")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    figures: dict[str, float] = {}
    table = Table("figure", f"CPU, {asked.threads} threads")
    for name in asked.models.split(","):
        parts = [roundings(name, asked.repeats)] + ([calibrated(name, asked.samples)] if asked.samples else [])
        for part in parts:
            for key, value in part:
                figures[key] = value
                table.add_row(key, f"{value:.3f}")
                print(f"{key:36s} {value:8.3f}", file=sys.stderr, flush=True)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
