"""What numbers depend on besides the spec: torch, device, machine and threads."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from suite.config.errors import MissingError
from suite.config.runtime import RuntimeSpec


@dataclass(frozen=True, slots=True)
class Numeric:
    """The numeric environment: the same spec in the same environment gives bit-identical results."""

    torch: str
    device: str
    machine: str
    threads: int

    @classmethod
    def of(cls, runtime: RuntimeSpec) -> Numeric:
        device = choose_device(runtime)
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        # The last bits differ with the CPU's instruction set, since the kernels do.
        machine = kind if device.type == "cuda" else f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
        return cls(torch.__version__, kind, machine, runtime.threads)

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def choose_device(runtime: RuntimeSpec) -> torch.device:
    """The device that a trial runs on.

    Raises:
        MissingError: a GPU is requested and there is none.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise MissingError("runtime.device: torch sees no GPU here. Use runtime.device=cpu, or see `regrade doctor`")
    gpu = runtime.device == "cuda" or (runtime.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if gpu else "cpu")


@contextmanager
def numeric(runtime: RuntimeSpec) -> Iterator[torch.device]:
    """Set threads and determinism for a trial; the number of threads is restored afterwards.

    On a CPU every kernel that is used here sums in a fixed order for a fixed number of threads. On a GPU deterministic
    kernels must be requested, which imports torch's compiler, so this is done only there.
    """
    device, threads = choose_device(runtime), torch.get_num_threads()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in another order each time
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(runtime.threads)
    try:
        yield device
    finally:
        torch.set_num_threads(threads)


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # of this process alone: getrusage starts from the peak of the parent process
        return 1024 * next(int(row.split()[1]) for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
