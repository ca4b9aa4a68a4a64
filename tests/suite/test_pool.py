"""The pool's scheduler on a real Ray, without an engine: its resources stay reserved, and only once."""

from __future__ import annotations

import gc
import os
import signal

import pytest
import ray
from ray.util import placement_group_table

from suite.cluster.connection import connected
from suite.cluster.placement import PoolResources
from suite.config.errors import ClusterError
from suite.engines.vllm.pool import find_pool, open_pool

RESOURCES = PoolResources(engines=1, gpus=0, threads=1, cpus=2)


@pytest.mark.ray
def test_a_desk_that_is_lost_takes_no_second_room(monkeypatch):
    """Both CPUs are reserved for the engine: if a restarted scheduler reserved them again, it would wait for ever."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with connected(None) as available:
        assert (available.cpus, find_pool()) == (2, None)
        scheduler = open_pool(RESOURCES)
        assert ray.get(open_pool(PoolResources()).resources.remote()) == RESOURCES  # the existing pool is not changed
        before, engines = ray.get(scheduler.processes.remote())
        assert engines == []
        os.kill(before, signal.SIGKILL)
        after, _ = ray.get(scheduler.processes.remote(), timeout=60)
        assert after != before
        assert ray.get(scheduler.resources.remote()) == RESOURCES
        states = [group["state"] for group in placement_group_table().values()]
        assert states == ["CREATED"]
        del scheduler
        gc.collect()
        assert ray.get(find_pool().resources.remote()) == RESOURCES  # it lives as long as the Ray job


def test_an_address_where_nobody_listens_is_told_at_once():
    with (
        pytest.raises(ClusterError, match=r"--address 127\.0\.0\.1:1: no Ray cluster answers there"),
        connected("127.0.0.1:1"),
    ):
        pass
