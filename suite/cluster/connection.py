"""A connection to Ray: a cluster at an address, or one of this machine alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray

from suite.cluster.placement import Resources
from suite.config.errors import SpecError

REACH = 10.0
"""Seconds in which a cluster's head takes a connection."""

PASSED_ON = ("REGRADE_DATA", "HF_HUB_OFFLINE", "HF_HOME")


def connect(address: str | None = None, *, first_gpu: bool = True) -> None:
    """Connect this process to Ray, which it may not be yet.

    Args:
        address: of a cluster, or `auto`; None starts a Ray of this machine alone, which ends with this process.
        first_gpu: whether such a Ray may give out the first GPU of this machine too: this process may compute on it.

    Raises:
        SpecError: no cluster at the address.
    """
    # A trial stays in the driver's folder, so that relative paths mean what they say.
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    variables |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    here: dict[str, Any] = {}
    if address:
        _reached(address)
    else:
        here = {"include_dashboard": False, "num_cpus": os.cpu_count()}
    try:
        with nullcontext() if first_gpu else _others_visible():
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": variables},
                **here,
            )
    except ConnectionError as error:
        raise SpecError(f"--address {address}: no Ray cluster answers there ({error})") from None


def _reached(address: str) -> None:
    """Raises SpecError where nothing listens at a host and port: Ray itself goes on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):  # auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except OSError as error:
        raise SpecError(f"--address {address}: no Ray cluster answers there ({error})") from None


@contextmanager
def connected(address: str | None) -> Iterator[Resources]:
    """A connection to a cluster, or to a Ray of this machine alone, and what there is.

    Raises:
        SpecError: no cluster at the address.
    """
    connect(address)
    try:
        yield cluster_resources(address)
    finally:
        ray.shutdown()


def cluster_resources(address: str | None = None) -> Resources:
    """What the cluster has that this process is connected to."""
    found = ray.cluster_resources()
    gpus = found.get("GPU", 0)
    # An autoscaled cluster starts its GPU machines when somebody waits for one.
    return Resources(found.get("CPU", 0), gpus, growing=bool(address) and not gpus)


@contextmanager
def _others_visible() -> Iterator[None]:
    """All GPUs but the first, for what is started meanwhile."""
    import torch

    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    visible = before.split(",") if before else [str(i) for i in range(torch.cuda.device_count())]
    os.environ[name] = ",".join(visible[1:])
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
