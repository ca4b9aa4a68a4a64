"""`regrade sweep`: many trials, a grid or an Optuna search, in this process or on Ray."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suite.cli.common import (
    STORE,
    EngineName,
    Json,
    Overrides,
    Progress,
    Spec,
    StoreDir,
    console,
    engine_override,
    print_json,
    read_plan,
)
from suite.cli.outputs import notice, say
from suite.cli.stopping import told_how_to_go_on, unfinished
from suite.cli.supervised import supervised

if TYPE_CHECKING:
    from suite.spec.search_space import Plan
    from suite.spec.trial import TrialSpec
    from suite.storage.store import Store


class Runner(StrEnum):
    LOCAL = "local"
    RAY = "ray"


def sweep(
    spec: Spec,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,...", help="An axis of the grid; give it several times.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="grid, or optuna over the file's search.space.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials of an Optuna search.", min=1)] = None,
    runner: Annotated[Runner, typer.Option(help="This process, or Ray.")] = Runner.LOCAL,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster; auto finds a running one.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at a time on Ray.", min=1)] = None,
    engine: EngineName = None,
    store: StoreDir = STORE,
    as_json: Json = False,
) -> None:
    """Run every trial of a grid, or search a space with Optuna. What is in the store already is not run again."""
    from suite.config.errors import SpecError
    from suite.storage.location import store_folder

    if concurrency and runner is not Runner.RAY:
        raise SpecError("--concurrency: trials run one at a time in this process. Use --runner ray")
    with supervised() if runner is Runner.RAY else nullcontext(lambda done, total: None) as on_count:
        from suite.storage.store import Store

        store_folder(store)
        plan = _plan(spec, overrides, grid, search, trials, engine)
        results = Store(store)
        with Progress(plan.search.trials or 0, on_count) as progress, told_how_to_go_on(progress):
            if plan.search.space:
                _run_search(plan, results, progress, runner, address, concurrency)
            else:
                _run_grid(plan, results, progress, runner, address, concurrency)
        _print_end(progress, results, as_json)


def _plan(
    spec: Path,
    overrides: list[str] | None,
    grid: list[str] | None,
    search: str | None,
    trials: int | None,
    engine: str | None,
) -> Plan:
    """The plan in the file, with the options' settings."""
    from suite.config.errors import SpecError

    _check_search(search)
    plan = read_plan(spec, overrides, {**_search_override(grid, trials), **engine_override(engine)})
    if search == "optuna" and not plan.search.space:
        raise SpecError(
            f"--search optuna: {spec} has no search.space to search. Write in it which values a key may have: search: "
            "{trials: 32, space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}}"
        )
    if search == "grid" and plan.search.space:
        raise SpecError(f"--search grid: {spec} has a search.space. Leave it out, or use --search optuna")
    return plan


def _print_end(progress: Progress, store: Store, as_json: bool) -> None:
    trials, nulls = ([vars(o) for o in progress.outcomes if o.null is null] for null in (False, True))
    if as_json:
        print_json({"trials": trials, "null_trials": nulls, "store": str(store.root)})
    else:
        more = f" and {len(nulls)} null trial{'s' * (len(nulls) > 1)}" if nulls else ""
        say(f"{len(trials)} trials{more}: {progress.summary()}. Board: {store.root / 'board'}")
    if progress.failed:
        console(stderr=True).print(f"{progress.failed} failed; the same command runs them again")
    if progress.missing:
        console(stderr=True).print(unfinished(progress.done, progress.total))
    if progress.failed or progress.missing:
        raise typer.Exit(1)


def _check_search(search: str | None) -> None:
    """Check the value of `--search`."""
    from suite.config.errors import SpecError
    from tasks.files import nearest
    from tasks.plain_text import cut

    if search in ("random", "tpe"):
        raise SpecError(f"--search {search}: is a sampler of Optuna's. Use --search optuna search.sampler={search}")
    if search not in (None, "grid", "optuna"):
        raise SpecError(
            f"--search {cut(search)}: unknown.{nearest(search, ['grid', 'optuna'])} (allowed: grid, optuna)"
        )


def _search_override(grid: list[str] | None, trials: int | None) -> dict[str, Any]:
    """`--grid` and `--trials` as settings that override the file's."""
    from suite.config.errors import SpecError
    from suite.spec.yaml_file import parse_value
    from tasks.plain_text import cut

    search: dict[str, Any] = {}
    for axis in grid or ():
        key, equals, values = axis.partition("=")
        value_list = parse_value(f"[{values}]", f"--grid {key}") if key.strip() and equals and values.strip() else None
        if not isinstance(value_list, list) or not value_list:
            raise SpecError(f"--grid {cut(axis)}: write --grid key=value,value, e.g. --grid seed=0,1")
        axes = search.setdefault("grid", {})
        if key in axes:
            raise SpecError(
                f"--grid {cut(key)}: given twice. Write all of its values in one: --grid {cut(key)}=...,..."
            )
        axes[key] = value_list
    if trials is not None:
        search["trials"] = trials
    return {"search": search} if search else {}


def _run_grid(
    plan: Plan, store: Store, progress: Progress, runner: Runner, address: str | None, concurrency: int | None
) -> None:
    """Run every trial of a grid, if all of them can be run."""
    from suite.trials.preflight import preflight

    specs = plan.trials()
    preflight(specs, plan.measure, plan.runtime, here=runner is Runner.LOCAL or not address, tell=notice)
    _run_trials(plan, specs, store, progress, runner, address, concurrency)


def _run_trials(
    plan: Plan,
    specs: list[TrialSpec],
    store: Store,
    progress: Progress,
    runner: Runner,
    address: str | None,
    concurrency: int | None,
) -> None:
    """Run the given trials, and then the null trials that follow from them."""
    from suite.runners import TrialJob, run_here
    from suite.runners.null_trials import null_jobs

    def nulls() -> list[TrialJob]:
        found = null_jobs(jobs, progress.done) if not progress.missing else []
        progress.expect(progress.total + len(found))
        return found

    progress.expect(progress.done + len(specs))
    jobs = [TrialJob(spec, plan.measure, plan.runtime, store.root, plan.declared()) for spec in specs]
    if runner is Runner.RAY:
        from suite.runners.ray_tune import run_on_ray

        at_a_time = concurrency or plan.search.concurrency
        run_on_ray(jobs, progress.on_outcome, address=address, concurrency=at_a_time, then=nulls)
    else:
        for some in (lambda: jobs, nulls):
            run_here(some(), progress.on_outcome, lambda job, stage: progress.on_stage(job.spec.label, stage))


def _run_search(
    plan: Plan, store: Store, progress: Progress, runner: Runner, address: str | None, concurrency: int | None
) -> None:
    """Search on dev, then measure the best trials on test."""
    from suite.runners import TrialJob
    from suite.runners.search import best_trials, search_here, some_trial
    from suite.trials.preflight import preflight
    from tasks.task import Split

    # A search does not use the headlines at matched utility; the best trials get them on test.
    dev = plan.measure.model_copy(update={"splits": (Split.DEV,), "match": None})
    example = some_trial(plan)
    for measure in (dev, plan.measure):
        preflight([example], measure, plan.runtime, here=runner is Runner.LOCAL or not address, tell=notice)
    if runner is Runner.RAY:
        from suite.runners.ray_tune import search_on_ray

        template = TrialJob(example, dev, plan.runtime, store.root, plan.declared())
        search_on_ray(
            plan, template, progress.on_outcome, address=address, concurrency=concurrency or plan.search.concurrency
        )
    else:
        search_here(
            plan,
            lambda spec: TrialJob(spec, dev, plan.runtime, store.root, plan.declared()),
            progress.on_outcome,
            lambda job, stage: progress.on_stage(job.spec.label, stage),
        )
    if progress.missing:  # the best of a part is not the best, and the test split is looked at once
        return
    finalists = best_trials(plan, progress.outcomes, store)
    if finalists:
        console(stderr=True).print(f"measuring the best {len(finalists)} on test")
        test = plan.model_copy(update={"measure": plan.measure.model_copy(update={"splits": (Split.TEST,)})})
        _run_trials(test, finalists, store, progress, runner, address, concurrency)
