"""A pool of warm engines behind one queue: vLLM in Ray actors that outlive the checkpoints that they run.

The scheduler, a named actor, takes requests from any number of trials and assigns them to engines, which are actors
with their own process and GPUs. An idle engine that has the configuration of a waiting request is preferred to one that
would have to be restarted. The resources of the engines are reserved before the first trial starts, and stay
reserved. An engine that dies or fails is replaced, and its request is run again, up to `MAX_ATTEMPTS` times. A reply
depends on its request alone, so nothing is lost and nothing is delivered twice.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from suite.cluster.placement import PoolResources
from suite.config.errors import EngineError
from suite.engines.vllm.model import EngineConfig, environment
from suite.engines.vllm.process import EngineProcess, PoolReply, PoolRequest, picklable

NAME = "regrade-pool"

MAX_ATTEMPTS = 3
"""Engines that a request may use up: two may be lost by accident, but a third loss is caused by the request itself."""

MAX_BROKEN_ENGINES = 2
"""Engines that may fail over a request, or not start for it, before it is given up."""

QUEUE_CAPACITY = 64
"""Requests that wait or run; the sender of another one waits. Their weights stay in memory until they are done."""

PATIENCE = 16
"""Times that a request may be passed over in favour of later ones."""

RESTART_DELAY = 2.0
"""Seconds between losing an engine and starting another: the memory of the previous one may not be free yet."""

NOTICE_INTERVAL = 20.0
"""Seconds between notices that the cluster has not enough free resources yet."""


@dataclass
class _Waiting:
    config: EngineConfig
    request: PoolRequest
    reply: asyncio.Future[PoolReply]
    passed_over: int = 0


@dataclass
class _Slot:
    """The reserved resources of one engine, and the engine that runs on them."""

    index: int
    config: EngineConfig | None = None
    actor: ActorHandle | None = None
    busy: bool = False


class Scheduler:
    """Takes requests and assigns them to engines.

    Args:
        resources: number of engines, and the resources of each.
        group: the reservation of these resources. Not made here: a restarted scheduler would make another.
    """

    def __init__(self, resources: PoolResources, group: PlacementGroup) -> None:
        self._resources, self._group = resources, group
        self._slots = [_Slot(index) for index in range(resources.engines)]
        self._waiting: list[_Waiting] = []
        self._capacity = asyncio.Semaphore(QUEUE_CAPACITY)
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, config: EngineConfig, request: PoolRequest) -> PoolReply:
        """The reply to a request."""
        async with self._capacity:
            reply: asyncio.Future[PoolReply] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(config, request, reply))
            self._assign()
            return await reply

    async def resources(self) -> PoolResources:
        """The number of engines, and the resources of each."""
        return self._resources

    async def close(self) -> None:
        """Stop the idle engines; the next request starts one."""
        for slot in self._slots:
            if not slot.busy:
                self._stop(slot)

    async def processes(self) -> tuple[int, list[int]]:
        """Process ids of the scheduler and of the running engines, for monitoring."""
        return os.getpid(), [await slot.actor.pid.remote() for slot in self._slots if slot.actor]

    def _assign(self) -> None:
        waiting = {w.config for w in self._waiting}
        for slot in sorted(self._slots, key=lambda slot: slot.config not in waiting):
            if not slot.busy and self._waiting:
                slot.busy = True
                task = asyncio.create_task(self._serve(slot, self._take(slot)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take(self, slot: _Slot) -> _Waiting:
        others = {other.config for other in self._slots if other is not slot}
        index = choose_request([w.config for w in self._waiting], self._waiting[0].passed_over, slot.config, others)
        for skipped in self._waiting[:index]:
            skipped.passed_over += 1
        return self._waiting.pop(index)

    async def _serve(self, slot: _Slot, waiting: _Waiting) -> None:
        try:
            reply = await self._complete(slot, waiting)
        except Exception as error:
            reply = PoolReply(error=picklable(error))
        slot.busy = False
        if not waiting.reply.done():  # the sender may have given up
            waiting.reply.set_result(reply)
        self._assign()

    async def _complete(self, slot: _Slot, waiting: _Waiting) -> PoolReply:
        """Run a request, on a new engine whenever one is lost."""
        broken_engines, reply = 0, PoolReply()
        for _ in range(MAX_ATTEMPTS):
            try:
                reply = await self._attempt(slot, waiting)
                if not reply.broken:
                    return reply
                broken_engines += 1
            except RayActorError as error:
                reply = PoolReply(error=EngineError(f"its engine was lost: {' '.join(str(error).split())}"))
            self._stop(slot)
            if broken_engines == MAX_BROKEN_ENGINES:
                break
            await asyncio.sleep(RESTART_DELAY)
        return reply

    async def _attempt(self, slot: _Slot, waiting: _Waiting) -> PoolReply:
        """Run a request on the engine in a slot; if that is of another configuration, it is replaced first."""
        if slot.config != waiting.config:
            self._stop(slot)
        if slot.actor is None:
            slot.config, slot.actor = waiting.config, self._new_actor(slot.index, waiting.config)
            if reason := await slot.actor.start.remote(waiting.config):
                return PoolReply(error=EngineError(f"vLLM does not start: {reason}"), broken=True)
        reply = await slot.actor.answer.remote(waiting.request)
        if waiting.config.sleeps and not reply.broken and not self._waiting:
            await slot.actor.sleep.remote()  # before the reply: its receiver may need the GPU at once
        return reply

    def _new_actor(self, index: int, config: EngineConfig) -> ActorHandle:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        engine: Any = ray.remote(
            EngineProcess
        ).options(  # by Ray's types its `remote` may give the class
            name=f"regrade-engine-{index}-{uuid.uuid4().hex[:8]}",
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": environment(config, self._resources.threads)},
        )
        return engine.remote()

    def _stop(self, slot: _Slot) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor)
        slot.config = slot.actor = None


def choose_request(
    waiting: Sequence[EngineConfig], passed_over: int, own: EngineConfig | None, others: set[EngineConfig | None]
) -> int:
    """Index of the waiting request that an engine takes: one with its own configuration, else one that no other engine
    is configured for.

    Args:
        waiting: the configuration that each request needs, the oldest first.
        passed_over: how often the oldest was passed over; after `PATIENCE` times it is taken whatever it needs.
        own: the configuration of this engine. others: those of the other engines.
    """
    if passed_over >= PATIENCE:
        return 0
    same = next((i for i, config in enumerate(waiting) if config == own), None)
    unclaimed = next((i for i, config in enumerate(waiting) if config not in others), 0)
    return unclaimed if same is None else same


def find_pool() -> ActorHandle | None:
    """The scheduler of this Ray job's pool, if there is one."""
    try:
        return ray.get_actor(NAME)
    except ValueError:
        return None


def open_pool(resources: PoolResources, notify: Callable[[], None] = lambda: None) -> ActorHandle:
    """The scheduler of this Ray job's pool. If there is no pool, its resources are reserved and it is created.

    Args:
        notify: called every now and then while the cluster has not enough free resources.
    """
    if (existing := find_pool()) is not None:
        return existing
    bundle = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    group = placement_group([bundle] * resources.engines)
    while not group.wait(NOTICE_INTERVAL):
        notify()
    scheduler: Any = ray.remote(Scheduler).options(
        name=NAME,
        num_cpus=0,
        max_concurrency=1000,
        max_restarts=-1,  # its engines end with it, and Ray sends pending requests again
        max_task_retries=-1,
    )
    handle = _SCHEDULERS[ray.get_runtime_context().get_job_id()] = scheduler.remote(resources, group)
    return handle


_SCHEDULERS: dict[str, ActorHandle] = {}
"""The scheduler of each Ray job. An actor ends when its creator drops the last handle."""
