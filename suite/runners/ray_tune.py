"""Trials on a Ray cluster through Ray Tune.

Ray distributes trials; what a trial is and what it brings it does not know.

Results live in our own store, not in Ray's: a sweep that was killed is begun again with the same command, and what was
finished is found there.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from suite.runners.base import Job, Outcome, refused, run_one
from suite.runners.search import sampler
from suite.settings import SpecError, parse
from suite.space import Plan, suggest
from suite.spec import MeasureSpec, RuntimeSpec, trial
from suite.specfile import merged, nested

Done = Callable[[Outcome], None]
LOST = 2
"""Times that a trial is begun again when its worker or node is lost (a spot machine, the kernel's memory killer)."""


def run_on_ray(jobs: Sequence[Job], done: Done, *, address: str | None, concurrency: int | None) -> None:
    """Run every job on the cluster at `address`, or on a Ray of this machine alone."""
    specs = [json.dumps(job.spec.canonical) for job in jobs]
    with _cluster(address, jobs[0].runtime) as places:
        config = tune.TuneConfig(max_concurrent_trials=concurrency or places, reuse_actors=True)
        _fit(jobs[0], {"spec": tune.grid_search(specs)}, config, (), done)


def search_on_ray(plan: Plan, template: Job, done: Done, *, address: str | None, concurrency: int | None) -> None:
    """An Optuna search whose trials run on the cluster, several at a time.

    Args:
        template: any job of the search, for what all of them share.
    """
    names = plan.search.maximize
    search = OptunaSearch(
        space=Draw(plan.base, plan.search.space),
        metric=list(names) if len(names) > 1 else names[0],
        mode=["max"] * len(names) if len(names) > 1 else "max",
        sampler=sampler(plan),
        study_name=f"regrade-{uuid.uuid4().hex}",
    )
    with _cluster(address, plan.runtime) as places:
        config = tune.TuneConfig(
            search_alg=search,
            num_samples=plan.search.trials or 1,
            # Without it Tune keeps a single trial waiting, and a searcher never fills a cluster.
            max_concurrent_trials=concurrency or places,
            reuse_actors=True,
        )
        _fit(template, None, config, names, done)


class Draw:
    """The define-by-run space of a plan. A class, because Tune pickles its searcher."""

    def __init__(self, base: Mapping[str, Any], space: Mapping[str, Any]) -> None:
        self.base, self.space = base, space

    def __call__(self, draw: Any) -> dict[str, Any]:
        suggest(self.base, self.space, draw)
        return {"base": json.dumps(self.base)}


@contextmanager
def _cluster(address: str | None, runtime: RuntimeSpec) -> Iterator[int]:
    """A connection to the cluster, and how many trials fit on it at once.

    Raises:
        SpecError: no cluster at the address, or one on which no trial fits.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our rows are the log
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # A trial stays in the driver's folder, so that relative paths mean what they say.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    for name in ("REGRADE_DATA", "HF_HUB_OFFLINE", "HF_HOME"):
        if name in os.environ:
            variables[name] = os.environ[name]
    here: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": os.cpu_count()}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": variables},
            **here,
        )
    except ConnectionError as error:
        raise SpecError(f"--address {address}: no Ray cluster answers there ({error})") from None
    try:
        gpu = _gpus(runtime)
        places = int(gpu) if gpu else int(ray.cluster_resources().get("CPU", 0)) // runtime.threads
        if runtime.device == "cuda" and not gpu:
            places = 1 if address else 0  # an autoscaled cluster starts its GPU nodes when a trial waits for one
        if places < 1:
            needs = "a GPU" if runtime.device == "cuda" else f"{runtime.threads} CPUs"
            raise SpecError(
                f"runtime: no trial fits: one needs {needs}, "
                f"the cluster has {ray.cluster_resources().get('CPU', 0):g} CPUs and {gpu:g} GPUs"
            )
        yield places
    finally:
        ray.shutdown()


def _gpus(runtime: RuntimeSpec) -> float:
    """GPUs of the cluster, as it is now, that trials may use."""
    return ray.cluster_resources().get("GPU", 0) if runtime.device != "cpu" else 0


def _fit(shared: Job, space: dict[str, Any] | None, config: Any, objectives: Sequence[str], done: Done) -> None:
    wants_gpu = shared.runtime.device == "cuda" or _gpus(shared.runtime) > 0
    context = {
        "measure": shared.measure.changed(),
        "runtime": shared.runtime.changed(),
        "store": str(shared.store),
        "objectives": list(objectives),
    }
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, context=context), {"cpu": shared.runtime.threads, "gpu": int(wants_gpu)}
    )

    folder = shared.store / "ray"
    name = uuid.uuid4().hex[:12]
    _LISTENERS[name] = done
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            verbose=0,
            callbacks=[Telling(name)],
            failure_config=tune.FailureConfig(max_failures=LOST),
        ),
    )
    try:
        tuner.fit()
    finally:
        del _LISTENERS[name]
    shutil.rmtree(folder / name, ignore_errors=True)  # everything of worth is in the stages and on the board


_LISTENERS: dict[str, Done] = {}
"""Who is told of outcomes, by experiment. Tune pickles its callbacks, and a terminal cannot be pickled."""


class Telling(tune.Callback):
    """Passes outcomes on as they come."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if "outcome" in result:
            _LISTENERS[self.experiment](Outcome(**json.loads(result["outcome"])))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        file = trial.error_file
        reason = " ".join(Path(file).read_text().split())[-300:] if file else "no reason given"
        lost = Outcome("", str(trial), "failed", f"its worker was lost: {reason}", {}, {}, {}, 0.0)
        _LISTENERS[self.experiment](lost)


def _trainable(config: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    """One trial on a worker. Reports finite numbers only: a NaN would leave an Optuna trial running for ever."""
    outcome = _outcome(config, context)
    numbers = {name: outcome.objective(name) for name in context["objectives"]}
    tune.report({**numbers, "outcome": json.dumps(asdict(outcome))})


def _outcome(config: Mapping[str, Any], context: Mapping[str, Any]) -> Outcome:
    if "spec" in config:
        data = json.loads(config["spec"])
    else:
        data = json.loads(config["base"])
        for key in sorted(config.keys() - {"base"}, key=lambda key: not key.endswith(".name")):
            data = merged(data, nested(key, config[key]))
    try:
        spec = trial(data)
    except SpecError as error:  # drawn settings that are valid one by one, not together
        return refused(str(error))
    job = Job(
        spec,
        parse(MeasureSpec, context["measure"], "measure."),
        parse(RuntimeSpec, context["runtime"], "runtime."),
        Path(context["store"]),
    )
    return run_one(job)
