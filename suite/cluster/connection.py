"""Connects to Ray: to a cluster at an address, or to a local Ray on this machine alone."""

from __future__ import annotations

import logging
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
from suite.config.errors import ClusterError, EngineError, SpecError

CONNECT_TIMEOUT = 10.0
"""Seconds within which a cluster's head must accept a connection."""

SETTINGS = b"\0\0\0\4"
"""How the first frame begins that each side of an HTTP/2 connection sends: its length in three bytes, and its type."""

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS + bytes(5)
"""A client's first bytes (RFC 9113, section 3.4). A head speaks gRPC, which is HTTP/2."""

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
        SpecError: the address is none.
        ClusterError: no cluster at the address.
        EngineError: Ray does not start on this machine.
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
                logging_level=logging.CRITICAL,  # a lost worker is our message, not a traceback
                runtime_env={"env_vars": variables},
                job_config=_OwnModules(),
                **local_options,
            )
    except Exception as error:  # of some ten kinds
        reason = " ".join(str(error).split())[:300]
        if address:
            raise ClusterError(f"--address {address}: no Ray cluster answers there ({reason})") from error
        raise EngineError(f"Ray does not start on this machine, {type(error).__name__}: {reason}") from error


def _check_reachable(address: str) -> None:
    """Raises SpecError if an address is none, and ClusterError if nothing listens there: Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise SpecError(f"--address {address}: a sweep is led from a machine of the cluster. Start it there, with auto")
    if not (host and port.isdecimal()):
        raise SpecError(f"--address {address}: write auto, or HOST:PORT of the cluster's head")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT) as connection:
            connection.sendall(HTTP2)
            answer = connection.recv(len(SETTINGS))
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(f"--address {address}: no Ray cluster answers there ({error})") from None
    if answer[3:] != SETTINGS[3:]:
        raise ClusterError(
            f"--address {address}: what answers there is no head of a Ray cluster. `ray status` on the head shows its "
            "address; the port is 6379 by default, 8265 is the dashboard's"
        )


@contextmanager
def connected(address: str | None) -> Iterator[Resources]:
    """Context with a connection to a cluster, or to a local Ray; yields the available resources.

    Raises:
        SpecError: the address is none.
        ClusterError: no cluster at the address.
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
