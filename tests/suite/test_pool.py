"""The pool's desk on a real Ray, without an engine: what is reserved stays reserved, once."""

from __future__ import annotations

import gc
import os
import signal

import pytest
import ray
from ray.util import placement_group_table

from suite.cluster.connection import connected
from suite.cluster.placement import PoolResources
from suite.config.errors import SpecError
from suite.engines.vllm.pool import find_pool, open_pool

SHAPE = PoolResources(engines=1, gpus=0, threads=1, cpus=2)


@pytest.mark.ray
def test_a_desk_that_is_lost_takes_no_second_room(monkeypatch):
    """Two CPUs of two are the engine's: had the desk's successor to reserve them again, it would wait for ever."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with connected(None) as room:
        assert (room.cpus, find_pool()) == (2, None)
        desk = open_pool(SHAPE)
        assert ray.get(open_pool(PoolResources()).taken.remote()) == SHAPE  # there is one: it stays what it is
        before, engines = ray.get(desk.processes.remote())
        assert engines == []
        os.kill(before, signal.SIGKILL)
        after, _ = ray.get(desk.processes.remote(), timeout=60)
        assert after != before
        assert ray.get(desk.taken.remote()) == SHAPE
        states = [group["state"] for group in placement_group_table().values()]
        assert states == ["CREATED"]
        del desk
        gc.collect()
        assert ray.get(find_pool().taken.remote()) == SHAPE  # it lives as long as the Ray job, whoever holds it


def test_an_address_where_nobody_listens_is_told_at_once():
    with (
        pytest.raises(SpecError, match=r"--address 127\.0\.0\.1:1: no Ray cluster answers there"),
        connected("127.0.0.1:1"),
    ):
        pass
