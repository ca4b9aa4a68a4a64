"""Runs inside vLLM's workers: swaps in the weights of another checkpoint, proves that they arrived, and says which
prompts they had no finite logits for.

vLLM's own reload raises no error when a tensor keeps its old value, and on a CPU it leaves a tied output head packed
from the previous weights. So the numbers that came in and the numbers in use are summed independently (see
`fingerprint`), and the caller of the swap compares the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suite.engines.vllm.draws import DrawnTokens
from suite.engines.vllm.fingerprint import MODULUS, combined, word_sum
from suite.engines.vllm.transport import WeightSource

PACKED = "_packed_sum"
"""Attribute of a module with the sum of the weights that its matrix product was packed from."""


@dataclass(frozen=True)
class SwapReport:
    """The report of one worker about a swap.

    Attributes:
        source: fingerprint of the weights that came in.
        loaded: sum of each parameter as it is used now.
    """

    source: int
    loaded: dict[str, int]


class SwapExtension:
    """A worker extension: vLLM adds these methods to its workers."""

    def swap(self: Any, weights: WeightSource) -> SwapReport:
        """Replace the weights of the model.

        Raises:
            Exception: the swap failed; the model must not be used any more.
        """
        dtype, device = self.model_config.dtype, self.device
        sums: list[Tensor] = []

        def incoming() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights.tensors():
                # Summed on the device, where that is fast, and before vLLM processes it.
                tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
                sums.append(word_sum(tensor))
                yield name, tensor

        model = self.model_runner.get_model()
        if device.type != "cpu" and not self.vllm_config.lora_config and _used_as_loaded(model):
            _load_in_place(model, incoming(), dtype)
        else:
            self.reload_weights(weights_iterator=incoming())
            _pack_again(model)
        return SwapReport(combined(sums), _sums_in_use(model))

    def watch(self: Any, prompts: int) -> None:
        """Note from now on which of so many prompts, by number, have logits that are not finite."""
        _tokens(self).watch(prompts)

    def nothing(self: Any) -> list[int]:
        """The numbers of these prompts."""
        return _tokens(self).nothing()

    def clean(self: Any) -> None:
        """Zero the keys and values. vLLM masks what a block has from before, and 0 times NaN is NaN."""
        waiting = list(self.model_runner.kv_caches)
        while waiting:
            cache = waiting.pop()
            if isinstance(cache, Tensor):
                cache.zero_()
            else:  # layers that carry a state have several tensors
                waiting.extend(cache)


def _tokens(worker: Any) -> DrawnTokens:
    return next(p for p in worker.model_runner.input_batch.logitsprocs.all if isinstance(p, DrawnTokens))


def arrived(workers: Sequence[SwapReport]) -> bool:
    """Whether the weights in use are those that came in, summed over the workers of a tensor-parallel engine.

    A parameter whose sum is the same on all workers is replicated; of all others each worker holds a part.
    """
    total = 0
    for name in workers[0].loaded:
        parts = [worker.loaded[name] for worker in workers]
        total += parts[0] if len(set(parts)) == 1 else sum(parts)
    return total % MODULUS == workers[0].source


def _used_as_loaded(model: nn.Module) -> bool:
    """Whether every weight is used in the form in which it is loaded, so that it can be overwritten in place."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    plain = UnquantizedLinearMethod | UnquantizedEmbeddingMethod
    return all(isinstance(method, plain) for method in methods if isinstance(method, QuantizeMethodBase))


def _load_in_place(model: Any, weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Repeat what vLLM does when it starts: half the copies of a reload, which makes new tensors first.

    Captured CUDA graphs go on reading the same memory, so it is an error if a parameter moves.
    """
    from vllm.model_executor.layers.attention import is_deferred_attention_layer

    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        model.load_weights(weights)
        for layer in filter(is_deferred_attention_layer, list(model.modules())):
            layer.process_weights_after_loading(dtype)  # some store values derived from their weights
    if moved := [name for name, parameter in model.named_parameters() if parameter.data_ptr() != places[name]]:
        raise RuntimeError(f"vLLM moved {moved[0]} while it was loaded")


def _pack_again(model: nn.Module) -> None:
    """Repack matrix products that share a tensor with another module: vLLM's reload misses them."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, PACKED) and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)


def _sums_in_use(model: nn.Module) -> dict[str, int]:
    """The sum of each parameter, tied ones once. If a matrix product has packed its own copy, the sum of that copy."""
    sums: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        packed = getattr(module, PACKED, None)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and packed is not None:
                if id(parameter) in seen:  # tied: the difference is 0, unless the copy is stale
                    sums[f"{prefix} packed apart"] = packed - word_sum(parameter)
                    continue
                sums[f"{prefix}.{name}"] = packed
            elif id(parameter) not in seen:
                sums[f"{prefix}.{name}"] = word_sum(parameter)
            seen.add(id(parameter))
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}


def _watch_packing() -> None:
    """On a CPU, record the sum that each matrix product is packed from: the packed form can't be read, and the original
    is freed."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def recorded_pack(layer: Any, remove_weight: bool) -> None:
        total = None if layer.weight.is_meta else word_sum(layer.weight)
        pack(layer, remove_weight)
        if total is not None:
            setattr(layer, PACKED, total)

    utils.dispatch_cpu_unquantized_gemm = recorded_pack


_watch_packing()  # on import, because a worker imports its extension before it builds the model
