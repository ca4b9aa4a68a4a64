"""`regrade run`: one trial, from anchors to rows."""

from __future__ import annotations

from suite.cli.common import (
    STORE,
    EngineName,
    Json,
    Overrides,
    Progress,
    Spec,
    StoreDir,
    engine_override,
    print_json,
    read_plan,
)
from suite.cli.outputs import notice, say
from suite.cli.stopping import told_how_to_go_on


def run(
    spec: Spec,
    overrides: Overrides = None,
    engine: EngineName = None,
    store: StoreDir = STORE,
    as_json: Json = False,
) -> None:
    """Run one trial: train the anchors, unlearn, attack, evaluate, and put the rows on the board."""
    import typer

    from suite.config.errors import SpecError
    from suite.runners import TrialJob, run_here
    from suite.runners.null_trials import null_jobs
    from suite.storage.location import store_folder
    from suite.storage.store import Store
    from suite.trials.preflight import preflight

    store_folder(store)
    plan = read_plan(spec, overrides, engine_override(engine))
    trials = [] if plan.search.space else plan.trials()
    if len(trials) != 1:
        raise SpecError(f"{spec}: describes a search, not one trial. Use regrade sweep {spec}")
    preflight(trials, plan.measure, plan.runtime, tell=notice)
    root = Store(store).root
    with Progress(1) as progress, told_how_to_go_on(progress):
        job = TrialJob(trials[0], plan.measure, plan.runtime, root)
        run_here([job], progress.on_outcome, lambda job, stage: progress.on_stage("trial", stage))
        nulls = null_jobs([job], progress.done)
        progress.expect(1 + len(nulls))
        run_here(nulls, progress.on_outcome, lambda job, stage: progress.on_stage("null trial", stage))
    outcome, *beside = progress.outcomes
    if as_json:
        print_json({**vars(outcome), "null_trials": [vars(one) for one in beside], "store": str(root)})
    else:
        more = " and a null trial" if beside else ""
        say(f"trial {outcome.trial[:12]}{more}: {progress.summary()}. Board: {root / 'board'}")
    if progress.failed:
        raise typer.Exit(1)
