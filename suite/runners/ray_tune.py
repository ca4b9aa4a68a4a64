"""Trials on a Ray cluster through Ray Tune.

Ray only distributes trials: each worker runs one as any other runner does.

Results live in our own store, not in Ray's. A killed sweep is started again with the same command, and reuses what is
in the store.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from suite.cluster.connection import connected
from suite.cluster.placement import Placement, plan_placement
from suite.config.errors import EngineError, SpecError
from suite.config.runtime import RuntimeSpec
from suite.config.settings import parse
from suite.engines.choosing import open_pool, pool_resources
from suite.runners.base import PRUNED, OnOutcome, Outcome, TrialJob, failed, pruned, refused, run_one
from suite.runners.search import sampler
from suite.spec.measure import MeasureSpec
from suite.spec.random_change import AnyTrial, any_trial
from suite.spec.search_space import Plan, drawn_trial, suggest
from suite.spec.yaml_file import merged, nested
from suite.trials.on_dev import Progress

RESTARTS = 2
"""Times that a trial is started again after its worker or node is lost (a spot machine, the kernel's OOM killer)."""


def run_on_ray(
    jobs: Sequence[TrialJob],
    on_outcome: OnOutcome,
    *,
    address: str | None,
    concurrency: int | None,
    then: Callable[[], Sequence[TrialJob]] = tuple,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run every job on the cluster at `address`, or on a Ray of this machine alone.

    Args:
        then: called when all are done, for jobs that follow from them; they run with the same engines.
        scheduler: told `step`, `forgetting` and `utility` at each intermediate checkpoint; may stop a trial there.
    """
    with _cluster(address, jobs[0]) as placement:
        _run(jobs, on_outcome, placement, concurrency, scheduler)
        _run(then(), on_outcome, placement, concurrency)


def _run(
    jobs: Sequence[TrialJob],
    on_outcome: OnOutcome,
    placement: Placement,
    concurrency: int | None,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run every job, and those again that Tune gave up before they had lost enough workers.

    Tune does so where a trial is to start on a worker of a node that was lost a moment ago.
    """
    for last in (*[False] * RESTARTS, True):
        if jobs:
            trials = concurrency or placement.trials
            config = tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=trials, reuse_actors=True)
            specs = [json.dumps(job.spec.canonical) for job in jobs]
            jobs = _fit(jobs[0], {"spec": tune.grid_search(specs)}, config, (), on_outcome, placement, last=last)


def search_on_ray(
    plan: Plan, template: TrialJob, on_outcome: OnOutcome, *, address: str | None, concurrency: int | None
) -> None:
    """Run an Optuna search on the cluster, several trials at a time.

    Args:
        template: any job of the search, for the settings that all of them share.
    """
    names = plan.search.maximize
    search = OptunaSearch(
        space=DefineByRunSpace(plan.base, plan.search.space),
        metric=list(names) if len(names) > 1 else names[0],
        mode=["max"] * len(names) if len(names) > 1 else "max",
        sampler=sampler(plan),
        study_name=f"regrade-{uuid.uuid4().hex}",
    )
    with _cluster(address, template) as placement:
        config = tune.TuneConfig(
            search_alg=search,
            num_samples=plan.search.trials or 1,
            # Without it Tune queues a single trial at a time, and a search never fills the cluster.
            max_concurrent_trials=concurrency or placement.trials,
            reuse_actors=True,
        )
        lost = _fit(template, None, config, names, on_outcome, placement)
        _run(lost, on_outcome, placement, concurrency)


class DefineByRunSpace:
    """The define-by-run space of a plan. A class, because Tune pickles its searcher."""

    def __init__(self, base: Mapping[str, Any], space: Mapping[str, Any]) -> None:
        self.base, self.space = base, space

    def __call__(self, draw: Any) -> dict[str, Any]:
        suggest(self.base, self.space, draw)
        return {"base": json.dumps(self.base)}


@contextmanager
def _cluster(address: str | None, template: TrialJob) -> Iterator[Placement]:
    """Connect to the cluster and place trials and engines on it. The engines' resources are reserved already.

    Ray prints what its processes report on standard output, which is for results; its log files have it too.

    Raises:
        ClusterError: no cluster at the address, or one on which no trial fits.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our rows are the log
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would return from Ctrl-C as if every trial were done
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), connected(address) as resources:
        placement = plan_placement(resources, pool_resources(template.measure), template.runtime)
        if placement.pool.engines:
            open_pool(template.measure, placement.pool, _on_wait)
        yield placement


def _on_wait() -> None:
    print(
        "waiting for free resources on the cluster for the engines (`ray status` says what is missing)", file=sys.stderr
    )


def _fit(
    template: TrialJob,
    space: dict[str, Any] | None,
    config: Any,
    objectives: Sequence[str],
    on_outcome: OnOutcome,
    placement: Placement,
    last: bool = False,
) -> list[TrialJob]:
    """Run trials with Tune.

    Args:
        last: whether every lost trial has failed, however many workers it had.

    Returns:
        Jobs without an outcome, which are to be run again.

    Raises:
        EngineError: Ray cannot go on.
    """
    context = {
        "measure": template.measure.changed(),
        "runtime": template.runtime.changed(),
        "store": str(template.store),
        "search": template.search,
        "folder": os.getcwd(),
        "objectives": list(objectives),
        "report": config.scheduler is not None,
    }
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, context=context),
        {"cpu": template.runtime.threads, "gpu": placement.trial_gpus},
    )

    folder = template.store / "ray"
    name = uuid.uuid4().hex[:12]
    listener = _LISTENERS[name] = _Listener(template, on_outcome, last)
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            verbose=0,
            callbacks=[OutcomeCallback(name)],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        tuner.fit()
    except (RayError, TuneError, ConnectionError) as error:
        cause = error.__cause__ or error  # Tune's own words are about how to go on with Tune
        raise EngineError(f"Ray broke off the sweep, {type(cause).__name__}: {_on_one_line(str(cause))}") from error
    finally:
        del _LISTENERS[name]
        shutil.rmtree(folder / name, ignore_errors=True)  # all results are in the stages and on the board
    return listener.again


@dataclass
class _Listener:
    """Takes the outcomes of an experiment.

    Attributes:
        template: any of its jobs.
        last: whether every lost trial has failed.
        again: lost trials that are to be run again.
        known: Tune's ids of the trials that have an outcome. A worker may be lost after it has sent one.
    """

    template: TrialJob
    on_outcome: OnOutcome
    last: bool
    again: list[TrialJob] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def take(self, tune_id: str, outcome: Outcome) -> None:
        if tune_id not in self.known:
            self.known.add(tune_id)
            self.on_outcome(outcome)

    def lost(self, tune_id: str, config: Mapping[str, Any], workers: int, cause: str) -> None:
        """A trial was lost with so many workers. None of them could write its row, so this process does."""
        try:
            job = replace(self.template, spec=_spec(config))
        except SpecError as error:
            return self.take(tune_id, refused(str(error)))
        if tune_id in self.known:
            return None
        if workers <= RESTARTS and not self.last:
            return self.again.append(job)
        lost = WorkerLost(f"{workers} worker{'s were' if workers > 1 else ' was'} lost while running it. {cause}")
        return self.take(tune_id, failed(job, lost))


_LISTENERS: dict[str, _Listener] = {}
"""Listeners by experiment, not in the callback: Tune pickles its callbacks, and a terminal cannot be pickled."""


class OutcomeCallback(tune.Callback):
    """Passes each outcome to the experiment's listener as it arrives."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if "outcome" in result:
            _LISTENERS[self.experiment].take(trial.trial_id, Outcome(**json.loads(result["outcome"])))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial that a scheduler stopped ends without an outcome of its own."""
        spec = _spec_or_none(trial.config)
        stopped = f"stopped by the scheduler at step {trial.last_result.get('step')}"
        outcome = pruned(spec.id, spec.label, stopped) if spec else refused("the draw is not a valid trial")
        _LISTENERS[self.experiment].take(trial.trial_id, outcome)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        print(f"{_label(trial.config)}: its worker was lost; the trial is started again", file=sys.stderr)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        cause = Path(trial.error_file).read_text() if trial.error_file else "Ray gives no reason"
        workers = trial.run_metadata.num_failures
        _LISTENERS[self.experiment].lost(trial.trial_id, trial.config, workers, _on_one_line(cause))


def _label(config: Mapping[str, Any]) -> str:
    spec = _spec_or_none(config)
    return spec.label if spec else "a draw"


def _spec_or_none(config: Mapping[str, Any]) -> AnyTrial | None:
    try:
        return _spec(config)
    except SpecError:
        return None


class WorkerLost(RuntimeError):
    """The process or the machine of a trial ended, and so did those on which it was started again.
    Internal: it is never raised, and becomes the row of the trial."""


def _on_one_line(report: str) -> str:
    """The end of a report of Ray's."""
    return " ".join(report.split())[-300:]


def _trainable(config: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    """Run one trial on a worker. Reports finite numbers only: a NaN would leave an Optuna trial running for ever.

    Where there is a scheduler, the numbers on dev are reported at each intermediate checkpoint too.
    """
    outcome = _outcome(config, context)
    if outcome.status == PRUNED:
        sys.exit(0)  # as Tune ends what it has stopped; it would wait for ever on one that returns
    numbers = {name: outcome.objective(name) for name in context["objectives"]}
    tune.report({**numbers, "outcome": json.dumps(asdict(outcome))})


def _outcome(config: Mapping[str, Any], context: Mapping[str, Any]) -> Outcome:
    with suppress(OSError):  # relative paths in a spec are those of the process that leads the sweep
        os.chdir(context["folder"])
    try:
        spec = _spec(config)
    except SpecError as error:
        if "spec" not in config:  # the drawn settings are valid one by one but not together
            return refused(str(error))
        return Outcome("", "not run", "failed", f"this machine has another version of regrade: {error}")
    job = TrialJob(
        spec,
        parse(MeasureSpec, context["measure"], "measure."),
        parse(RuntimeSpec, context["runtime"], "runtime."),
        Path(context["store"]),
        context["search"],
    )
    return run_one(job, report=_report if context["report"] else None)


def _report(progress: Progress) -> bool:
    """Tell Tune where a trial is. True if its scheduler stops the trial."""
    numbers = {name: value for name, value in asdict(progress).items() if value is not None}
    try:
        tune.report(numbers)
    except SystemExit:  # how Tune ends a function that it has stopped
        return True
    return False


def _spec(config: Mapping[str, Any]) -> AnyTrial:
    """The trial of a configuration: its spec, or the base of a search with the settings that were drawn.

    Raises:
        SpecError: the settings are not valid together.
    """
    if "spec" in config:
        return any_trial(json.loads(config["spec"]))
    data = json.loads(config["base"])
    for key in sorted(config.keys() - {"base"}, key=lambda key: not key.endswith(".name")):
        data = merged(data, nested(key, config[key]))
    return drawn_trial(data)
