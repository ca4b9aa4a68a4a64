"""`regrade sweep`: many trials, a grid or an Optuna search, in this process or on Ray."""

from __future__ import annotations

from enum import StrEnum
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
    asked_engine,
    console,
    print_json,
    read_plan,
)

if TYPE_CHECKING:
    from suite.spec.search_space import Plan
    from suite.storage.store import Store


class Runner(StrEnum):
    LOCAL = "local"
    RAY = "ray"


class Search(StrEnum):
    GRID = "grid"
    OPTUNA = "optuna"


def sweep(
    spec: Spec,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,...", help="An axis of the grid; give it several times.")
    ] = None,
    search: Annotated[Search | None, typer.Option(help="grid, or optuna over the file's search.space.")] = None,
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
    from suite.storage.store import Store
    from suite.trials.preflight import preflight

    store_folder(store)
    plan = read_plan(spec, overrides, {**_search(grid, trials), **asked_engine(engine)})
    if search is Search.OPTUNA and not plan.search.space:
        raise SpecError(f"--search optuna: {spec} has no search.space to search")
    if search is Search.GRID and plan.search.space:
        raise SpecError(f"--search grid: {spec} has a search.space. Leave it out, or use --search optuna")
    if concurrency and runner is not Runner.RAY:
        raise SpecError("--concurrency: trials run one at a time in this process. Use --runner ray")
    root = Store(store)
    with Progress(plan.search.trials or 0) as progress:
        if plan.search.space:
            _optuna(plan, root, progress, runner, address, concurrency)
        else:
            specs = plan.trials()
            preflight(specs, plan.measure, plan.runtime, here=runner is Runner.LOCAL)
            _grid(plan, specs, root, progress, runner, address, concurrency)
    if as_json:
        print_json({"trials": [vars(o) for o in progress.outcomes], "store": str(root.root)})
    else:
        console().print(f"{progress.done} trials: {progress.summary()}. Board: {root.root / 'board'}")
    if progress.failed:
        console(stderr=True).print(f"{progress.failed} failed; the same command runs them again")
        raise typer.Exit(1)


def _search(grid: list[str] | None, trials: int | None) -> dict[str, Any]:
    """The search as the command line says it."""
    from suite.config.errors import SpecError
    from suite.spec.yaml_file import parse_value

    found: dict[str, Any] = {}
    for axis in grid or ():
        key, equals, values = axis.partition("=")
        listed = parse_value(f"[{values}]")
        if not equals or not isinstance(listed, list) or not listed:
            raise SpecError(f"--grid {axis}: write --grid key=value,value, e.g. --grid seed=0,1")
        found.setdefault("grid", {})[key] = listed
    if trials is not None:
        found["trials"] = trials
    return {"search": found} if found else {}


def _grid(
    plan: Plan, specs: list, root: Store, progress: Progress, runner: Runner, address: str | None, many: int | None
) -> None:
    from suite.runners import TrialJob, run_here

    progress.expect(progress.done + len(specs))
    jobs = [TrialJob(one, plan.measure, plan.runtime, root.root) for one in specs]
    if runner is Runner.RAY:
        from suite.runners.ray_tune import run_on_ray

        run_on_ray(jobs, progress.finished, address=address, concurrency=many or plan.search.concurrency)
    else:
        run_here(jobs, progress.finished, lambda job, stage: progress.stage(job.spec.optimizer.name, stage))


def _optuna(plan: Plan, root: Store, progress: Progress, runner: Runner, address: str | None, many: int | None) -> None:
    """Search on dev, then measure the best on test."""
    from suite.runners import TrialJob
    from suite.runners.search import best_trials, search_here, some_trial
    from suite.trials.preflight import preflight
    from tasks.task import Split

    # No objective of a search reads the headlines at matched utility; the best trials have them on test.
    dev = plan.measure.model_copy(update={"splits": (Split.DEV,), "match": None})
    example = some_trial(plan)
    for measure in (dev, plan.measure):
        preflight([example], measure, plan.runtime, here=runner is Runner.LOCAL)
    if runner is Runner.RAY:
        from suite.runners.ray_tune import search_on_ray

        template = TrialJob(example, dev, plan.runtime, root.root)
        search_on_ray(plan, template, progress.finished, address=address, concurrency=many or plan.search.concurrency)
    else:
        search_here(
            plan,
            lambda one: TrialJob(one, dev, plan.runtime, root.root),
            progress.finished,
            lambda job, stage: progress.stage(job.spec.optimizer.name, stage),
        )
    finalists = best_trials(plan, progress.outcomes, root)
    if finalists:
        console(stderr=True).print(f"measuring the best {len(finalists)} on test")
        test = plan.model_copy(update={"measure": plan.measure.model_copy(update={"splits": (Split.TEST,)})})
        _grid(test, finalists, root, progress, runner, address, many)
