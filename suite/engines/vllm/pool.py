"""Warm engines behind one queue: vLLM in Ray actors that outlive the checkpoints they are asked about.

A desk, an actor by name, takes orders from any number of trials and gives them to engines, which are actors with a
process, and GPUs, of their own. An engine that holds the architecture of a waiting order is preferred to one that would
have to be started anew. What the engines need is reserved before the first trial starts, and stays reserved. An engine
that dies, or whose weights did not arrive, is replaced, and its order is done again: answers follow from the order
alone, so nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from suite.cluster.placement import PoolResources
from suite.config.errors import EngineError
from suite.engines.vllm.model import Start, environment
from suite.engines.vllm.process import EngineProcess, PoolRequest, Reply, plain

NAME = "regrade-pool"

TRIES = 3
"""Engines that an order may use up: two may be lost to accidents, a third loss is the order's own doing."""

SPOILT = 2
"""Engines that one and the same checkpoint may spoil, or keep from starting."""

ROOM = 64
"""Orders in the queue; who brings another one waits. An order's weights stay in memory until it is done."""

PATIENCE = 16
"""Times that an order may be passed over in favour of an architecture that is already there."""

PAUSE = 2.0
"""Seconds before another engine is started: the memory of the one before may not be free yet."""

NOTICE = 20.0
"""Seconds of waiting for room on the cluster before it is said, and said again."""


@dataclass
class _Waiting:
    start: Start
    order: PoolRequest
    reply: asyncio.Future[Reply]
    passed_over: int = 0


@dataclass
class _Slot:
    """Room for an engine, and the engine that is there."""

    index: int
    start: Start | None = None
    actor: ActorHandle | None = None
    busy: bool = False


class Scheduler:
    """Takes orders and gives them to engines.

    Args:
        group: what the engines need. Not the desk's own, which begins anew when it is lost, and would reserve it twice.
    """

    def __init__(self, shape: PoolResources, group: PlacementGroup) -> None:
        self.shape, self._group = shape, group
        self._slots = [_Slot(index) for index in range(shape.engines)]
        self._waiting: list[_Waiting] = []
        self._room = asyncio.Semaphore(ROOM)
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, start: Start, order: PoolRequest) -> Reply:
        """What becomes of an order."""
        async with self._room:
            reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(start, order, reply))
            self._give_out()
            return await reply

    async def taken(self) -> PoolResources:
        """How many engines there are, and what each takes."""
        return self.shape

    async def close(self) -> None:
        """End the engines that are idle; the next order starts one."""
        for slot in self._slots:
            if not slot.busy:
                self._end(slot)

    async def processes(self) -> tuple[int, list[int]]:
        """Process ids of the desk and of the engines that are there, for whoever looks after them."""
        return os.getpid(), [await slot.actor.pid.remote() for slot in self._slots if slot.actor]

    def _give_out(self) -> None:
        for slot in self._slots:
            if not slot.busy and self._waiting:
                slot.busy = True
                task = asyncio.create_task(self._serve(slot, self._next(slot)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next(self, slot: _Slot) -> _Waiting:
        others = {other.start for other in self._slots if other is not slot}
        index = chosen([w.start for w in self._waiting], self._waiting[0].passed_over, slot.start, others)
        for passed in self._waiting[:index]:
            passed.passed_over += 1
        return self._waiting.pop(index)

    async def _serve(self, slot: _Slot, waiting: _Waiting) -> None:
        try:
            reply = await self._done(slot, waiting)
        except Exception as error:
            reply = Reply(error=plain(error))
        slot.busy = False
        if not waiting.reply.done():  # whoever asked may have given up
            waiting.reply.set_result(reply)
        self._give_out()

    async def _done(self, slot: _Slot, waiting: _Waiting) -> Reply:
        """An order, done on as many engines as it takes."""
        spoilt, reply = 0, Reply()
        for _ in range(TRIES):
            try:
                reply = await self._tried(slot, waiting)
                if not reply.broken:
                    return reply
                spoilt += 1
            except RayActorError as error:
                reply = Reply(error=EngineError(f"its engine was lost: {' '.join(str(error).split())}"))
            self._end(slot)
            if spoilt == SPOILT:
                break
            await asyncio.sleep(PAUSE)
        return reply

    async def _tried(self, slot: _Slot, waiting: _Waiting) -> Reply:
        """An order, given to the engine in a slot; one of its kind is started there first if need be."""
        if slot.start != waiting.start:
            self._end(slot)
        if slot.actor is None:
            slot.start, slot.actor = waiting.start, self._engine(slot.index, waiting.start)
            if reason := await slot.actor.start.remote(waiting.start):
                return Reply(error=EngineError(f"vLLM does not start: {reason}"), broken=True)
        reply = await slot.actor.answer.remote(waiting.order)
        if waiting.start.sleeps and not reply.broken and not self._waiting:
            await slot.actor.rest.remote()  # before the answer: whoever gets it may want the GPU at once
        return reply

    def _engine(self, index: int, start: Start) -> ActorHandle:
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        return (
            ray.remote(EngineProcess)
            .options(
                name=f"regrade-engine-{index}-{uuid.uuid4().hex[:8]}",
                num_cpus=self.shape.cpus,
                num_gpus=self.shape.gpus,
                scheduling_strategy=where,
                runtime_env={"env_vars": environment(start, self.shape.threads)},
            )
            .remote()
        )

    def _end(self, slot: _Slot) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor)
        slot.start = slot.actor = None


def chosen(waiting: Sequence[Start], passed_over: int, mine: Start | None, others: set[Start | None]) -> int:
    """Which of the waiting orders an engine takes: one of its architecture, else one that no other engine is there for.

    Args:
        waiting: what each order needs, the oldest first.
        passed_over: how often the oldest was; after `PATIENCE` times it is taken whatever it needs.
        mine: what this engine was started with. others: what the other ones were.
    """
    if passed_over >= PATIENCE:
        return 0
    same = next((i for i, start in enumerate(waiting) if start == mine), None)
    fresh = next((i for i, start in enumerate(waiting) if start not in others), 0)
    return fresh if same is None else same


def find_pool() -> ActorHandle | None:
    """The pool of this Ray job, if there is one."""
    try:
        return ray.get_actor(NAME)
    except ValueError:
        return None


def open_pool(shape: PoolResources, told: Callable[[], None] = lambda: None) -> ActorHandle:
    """The pool of this Ray job, with what it needs reserved; made where there is none.

    Args:
        told: called every now and then while the cluster has no room yet.
    """
    if (there := find_pool()) is not None:
        return there
    bundle = {"CPU": shape.cpus, **({"GPU": shape.gpus} if shape.gpus else {})}
    group = placement_group([bundle] * shape.engines)
    while not group.wait(NOTICE):
        told()
    desk = ray.remote(Scheduler).options(
        name=NAME,
        num_cpus=0,
        max_concurrency=1000,
        max_restarts=-1,  # its engines go with it, and the orders that were out are brought again
        max_task_retries=-1,
    )
    made = _KEPT[ray.get_runtime_context().get_job_id()] = desk.remote(shape, group)
    return made


_KEPT: dict[str, ActorHandle] = {}
"""The desk of this Ray job. An actor ends with the last handle of whoever made it."""
