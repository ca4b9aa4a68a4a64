"""Shared by the tests of vLLM: small random models, probes, and one pool with a real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.engines.vllm.build import build


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    installed = build()
    reason = "vLLM is not installed here: make test-vllm" if installed is None else installed.unfit
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if reason:
                item.add_marker(pytest.mark.skip(reason))


def tiny_config(kind: str, **more: Any) -> Any:
    """A config with heads of 32, for which vLLM has kernels on a CPU. The tokenizer has a token for every byte."""
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 258,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.125,
    }
    return AutoConfig.for_model(kind, **sizes | more)


def saved(folder: Path, config: Any, seed: int) -> Path:
    """A model with random weights, all of them: norms and biases too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    return folder


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Folders of models by (kind, seed), each made once."""
    root = tmp_path_factory.mktemp("models")

    def make(kind: str, seed: int, **config: Any) -> Path:
        folder = root / f"{'-'.join([kind, *map(str, config.values())])}-{seed}"
        return folder if folder.is_dir() else saved(folder, tiny_config(kind, **config), seed)

    return make


@pytest.fixture(scope="session")
def untied(made: Make) -> Callable[[int], Path]:
    return lambda seed: made("llama", seed, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tied(made: Make) -> Callable[[int], Path]:
    return lambda seed: made("llama", seed, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def encoder(untied: Callable[[int], Path]) -> Any:
    from suite.models.encoding import Encoder, Template
    from suite.models.loading import load_tokenizer

    return Encoder(load_tokenizer(untied(0)), Template.BARE)


@pytest.fixture(scope="session")
def probes() -> tuple[Any, ...]:
    """Every kind of probe, with prompts of different lengths, all longer than a block of vLLM's prefix cache."""
    from tasks.task import Item, Probe, ProbeKind, Sampling, Split, Subset

    items = tuple(
        Item(
            str(i),
            f"{'so ' * (i % 5)}please say it as plainly as you ever can: what is {i}?",
            (f"it is {i * i}", "nobody knows", f"{i}"),
        )
        for i in range(24)
    )
    plain = {"subset": Subset.FORGET, "split": Split.TEST}
    generate = {**plain, "kind": ProbeKind.GENERATE, "metrics": ("rougeL_recall",)}
    return (
        Probe("text", **generate, items=items, max_new_tokens=20),
        Probe("until", **generate, items=items, max_new_tokens=40, stop=("e",)),
        Probe("drawn", **generate, items=items[:6], max_new_tokens=12, sampling=Sampling(3, 0.8)),
        Probe("logprob", **plain, kind=ProbeKind.LOGPROB, items=items, metrics=("probability",)),
        Probe("choice", **plain, kind=ProbeKind.CHOICE, items=items, metrics=("accuracy",)),
    )


@pytest.fixture(scope="session")
def pool() -> Iterator[Any]:
    """A scheduler with one engine, on a Ray of its own."""
    from suite.cluster.connection import connected
    from suite.config.runtime import RuntimeSpec
    from suite.engines.choosing import check_here
    from suite.engines.vllm.pool import open_pool
    from suite.spec.measure import MeasureSpec

    with connected(None):
        yield open_pool(check_here(MeasureSpec(engine="vllm"), RuntimeSpec(device="cpu")).pool)


@pytest.fixture(scope="session")
def pids(pool: Any) -> Callable[[], list[int]]:
    """Process ids of the running engines."""
    import ray

    return lambda: ray.get(pool.processes.remote())[1]


@pytest.fixture(scope="session")
def engines(pool: Any, encoder: Any) -> Callable[..., Any]:
    """The engine as trials use it, or with `alone=True`."""
    from suite.engines.vllm.engine import VllmEngine
    from suite.engines.vllm.settings import VllmSettings
    from suite.spec.measure import MeasureSpec

    def make(dtype: str = "float32", tensor_parallel: int = 1, cache_gib: float = 0.25, **more: Any) -> VllmEngine:
        vllm_settings = VllmSettings(cache_gib=cache_gib, eager=True, tensor_parallel=tensor_parallel)
        measure = MeasureSpec(engine="vllm", vllm=vllm_settings)
        return VllmEngine(measure, encoder, dtype=dtype, device=torch.device("cpu"), **more)

    return make
