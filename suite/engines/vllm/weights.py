"""What runs inside vLLM's workers: other weights in place of those that are there, and proof that they arrived.

vLLM's own reload says nothing when a tensor keeps its old value, and on a CPU it leaves a tied output head packed from
the weights before. So the numbers that came in and the numbers that are used are summed up independently (see
`fingerprint`), and whoever asked for the swap compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suite.engines.vllm.fingerprint import MODULUS, combined, word_sum
from suite.engines.vllm.transport import WeightSource

PACKED = "_packed_sum"
"""Where a module keeps the sum of the weights that its matrix product was packed from."""


@dataclass(frozen=True)
class Swapped:
    """What one worker says of a swap.

    Attributes:
        source: fingerprint of what came in.
        loaded: sum of each parameter as it is used now.
    """

    source: int
    loaded: dict[str, int]


class Swapping:
    """A worker extension: vLLM adds these methods to its workers."""

    def swap(self: Any, weights: WeightSource) -> Swapped:
        """Put weights in place of those that are there.

        Raises:
            Exception: whatever went wrong; the model is then of no more use.
        """
        dtype, device = self.model_config.dtype, self.device
        sums: list[Tensor] = []

        def arriving() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights.tensors():
                # Summed where the arithmetic is fast, before vLLM lays hands on it.
                tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
                sums.append(word_sum(tensor))
                yield name, tensor

        model = self.model_runner.get_model()
        if device.type != "cpu" and not self.vllm_config.lora_config and _as_loaded(model):
            _load_in_place(model, arriving(), dtype)
        else:
            self.reload_weights(weights_iterator=arriving())
            _pack_again(model)
        return Swapped(combined(sums), _in_use(model))


def arrived(workers: Sequence[Swapped]) -> bool:
    """Whether what is used is what came in, summed over the workers of a tensor-parallel engine.

    A parameter whose sum is the same on all of them is one that each holds whole; of all others each holds a part.
    """
    total = 0
    for name in workers[0].loaded:
        parts = [worker.loaded[name] for worker in workers]
        total += parts[0] if len(set(parts)) == 1 else sum(parts)
    return total % MODULUS == workers[0].source


def _as_loaded(model: nn.Module) -> bool:
    """Whether every weight is used in the form in which it is loaded, so that it can be written over where it lies."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    plain = UnquantizedLinearMethod | UnquantizedEmbeddingMethod
    return all(isinstance(method, plain) for method in methods if isinstance(method, QuantizeMethodBase))


def _load_in_place(model: nn.Module, weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """What vLLM does when it starts, once more: half the copies of a reload, which makes new tensors first.

    Captured graphs go on reading the same memory, so a parameter that moves is an error.
    """
    from vllm.model_executor.layers.attention import is_deferred_attention_layer

    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        model.load_weights(weights)
        for layer in filter(is_deferred_attention_layer, list(model.modules())):
            layer.process_weights_after_loading(dtype)  # some keep products of their weights
    if moved := [name for name, parameter in model.named_parameters() if parameter.data_ptr() != places[name]]:
        raise RuntimeError(f"vLLM moved {moved[0]} while it was loaded")


def _pack_again(model: nn.Module) -> None:
    """Matrix products that are packed from a tensor which another module was given: reload does not know of them."""
    for module in model.modules():
        if hasattr(module, PACKED) and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)


def _in_use(model: nn.Module) -> dict[str, int]:
    """The sum of each parameter, tied ones once. Where the product has packed its own copy, that of the copy."""
    sums: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        packed = getattr(module, PACKED, None)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and packed is not None:
                if id(parameter) in seen:  # tied: the same numbers twice, unless the copy is stale
                    sums[f"{prefix} packed apart"] = packed - word_sum(parameter)
                    continue
                sums[f"{prefix}.{name}"] = packed
            elif id(parameter) not in seen:
                sums[f"{prefix}.{name}"] = word_sum(parameter)
            seen.add(id(parameter))
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}


def _watch_packing() -> None:
    """On a CPU, note what each matrix product is packed from: the packed form can't be read, and the rest is freed."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def noted(layer: nn.Module, remove_weight: bool) -> None:
        total = None if layer.weight.is_meta else word_sum(layer.weight)
        pack(layer, remove_weight)
        if total is not None:
            setattr(layer, PACKED, total)

    utils.dispatch_cpu_unquantized_gemm = noted


_watch_packing()  # here, because a worker imports its extension before it makes the model
