"""Connects to Ray: to a cluster at an address, or to a local Ray on this machine alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.job_config import JobConfig

from suite.cluster.placement import Resources
from suite.config.errors import SpecError

CONNECT_TIMEOUT = 10.0
"""Seconds within which a cluster's head must accept a connection."""

FORWARDED_VARIABLES = ("REGRADE_DATA", "HF_HUB_OFFLINE", "HF_HOME")


class _OwnModules(JobConfig):
    """A job whose workers import modules from where they are installed.

    Ray would put this process's folder in front of their path: then a `tasks.py` in it, which may be anybody's, is
    imported in place of ours. It does not do so for a job with a folder of its own.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Context in which Ray does not replace this process's handler of SIGTERM, if it has one."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def connect(address: str | None = None, *, first_gpu: bool = True) -> None:
    """Connect this process to Ray. It must not be connected yet.

    Args:
        address: of a cluster, or `auto`; None starts a local Ray on this machine alone, which ends with this process.
        first_gpu: whether a local Ray may use the first GPU of this machine too; if not, this process computes on it.

    Raises:
        SpecError: no cluster at the address.
    """
    # A trial stays in the driver's folder, so that relative paths stay valid.
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    variables |= {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
    local_options: dict[str, Any] = {}
    if address:
        _check_reachable(address)
    else:
        local_options = {"include_dashboard": False, "num_cpus": os.cpu_count()}
    try:
        with nullcontext() if first_gpu else _first_gpu_hidden(), _own_sigterm_handler():
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="CRITICAL",  # a lost worker is our message, not a traceback
                runtime_env={"env_vars": variables},
                job_config=_OwnModules(),
                **local_options,
            )
    except ConnectionError as error:
        raise SpecError(f"--address {address}: no Ray cluster answers there ({error})") from None


def _check_reachable(address: str) -> None:
    """Raises SpecError if nothing listens at a host and port. Ray itself would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):  # auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise SpecError(f"--address {address}: no Ray cluster answers there ({error})") from None


@contextmanager
def connected(address: str | None) -> Iterator[Resources]:
    """Context with a connection to a cluster, or to a local Ray; yields the available resources.

    Raises:
        SpecError: no cluster at the address.
    """
    connect(address)
    try:
        yield cluster_resources(address)
    finally:
        ray.shutdown()


def cluster_resources(address: str | None = None) -> Resources:
    """The resources of the cluster that this process is connected to."""
    available = ray.cluster_resources()
    gpus = available.get("GPU", 0)
    # An autoscaled cluster starts its GPU machines when something waits for one.
    return Resources(available.get("CPU", 0), gpus, growing=bool(address) and not gpus)


@contextmanager
def _first_gpu_hidden() -> Iterator[None]:
    """Hide the first GPU from processes that are started in this context."""
    import torch

    name = "CUDA_VISIBLE_DEVICES"
    previous = os.environ.get(name)
    visible = previous.split(",") if previous else [str(i) for i in range(torch.cuda.device_count())]
    os.environ[name] = ",".join(visible[1:])
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous
