"""`regrade validate`: what would run, what it would cost, and whether it fits. Runs nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from suite.cli.common import EngineName, Json, Overrides, Spec, console, engine_override, print_json, read_plan, table
from suite.cli.outputs import notice

if TYPE_CHECKING:
    from suite.cluster.placement import Placement, Resources
    from suite.spec.search_space import Plan


def validate(
    spec: Spec,
    overrides: Overrides = None,
    engine: EngineName = None,
    address: Annotated[
        str | None, typer.Option(help="Check against the Ray cluster there, instead of this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a spec and show its trials, their cost, and what fits at a time. Computes nothing."""
    from suite.runners.null_trials import random_changes
    from suite.runners.search import some_trial
    from suite.trials.preflight import preflight

    plan = read_plan(spec, overrides, engine_override(engine))
    search = bool(plan.search.space)
    trials = [some_trial(plan)] if search else plan.trials()
    checked = preflight(trials, plan.measure, plan.runtime, here=not address, tell=notice)
    placement, resources = _placement(plan, address)
    # A search's follow from its best trials, which nobody knows yet.
    beside = [] if search or plan.measure.nulls is False else trials
    nulls = len(random_changes(beside, {s.id: 1.0 for s in beside}, bool(plan.measure.nulls), len(beside)))
    if as_json:
        listed = [{"trial": s.id, "label": s.label, "spec": s.canonical, "cost": c.as_dict()} for s, c in checked]
        searched = plan.search.changed() if search else None
        found = {"valid": True, "search": searched, "trials": listed, "null_trials": nulls}
        print_json({**found, "places": asdict(placement)})
        return
    rows = [
        [
            s.label,
            s.id[:12],
            str(c.steps),
            str(c.value_calls),
            str(c.gradient_calls),
            str(c.curvature_calls),
            str(c.evaluations),
            f"{c.matching_least} to {c.matching_most}" if c.matching_most else "–",
        ]
        for s, c in checked
    ]
    names = ["trial", "id", "steps", "values", "gradients", "curvature", "evaluations", "matching"]
    table(f"{spec}: valid", names, rows)
    if search:
        keys = ", ".join(plan.search.space)
        console().print(f"An Optuna search of {plan.search.trials} trials over {keys}; the one above is an example.")
    if nulls:
        follow = "null trial follows" if nulls == 1 else "null trials follow"
        console().print(f"{nulls} {follow}: the target plus a random change as large as theirs (measure.nulls).")
    console().print("Evaluations count the anchors', which all trials share.")
    if plan.measure.match is not None:
        console().print(
            "Matching evaluates weights between the target and the unlearned model besides, and attacks those where "
            f"utility is at {plan.measure.match:g}, mostly none to four of them. measure.match=null turns it off.",
            soft_wrap=True,
        )
    console().print(_capacity(placement, resources, address), soft_wrap=True)


def _placement(plan: Plan, address: str | None) -> tuple[Placement, Resources]:
    """The placement of trials and engines, and the resources of the machine or cluster."""
    from suite.cluster.placement import local_resources, plan_placement
    from suite.engines.choosing import check_here, pool_resources

    if not address:
        return check_here(plan.measure, plan.runtime), local_resources()
    from suite.cluster.connection import connected

    with connected(address) as resources:
        return plan_placement(resources, pool_resources(plan.measure), plan.runtime), resources


def _capacity(placement: Placement, resources: Resources, address: str | None) -> str:
    """One sentence about how many trials and engines run at a time."""
    where, trials, pool = f"The cluster at {address}" if address else "This machine", placement.trials, placement.pool
    capacity = f"{where} has {resources}: {trials} trial{'s' if trials > 1 else ''} at a time"
    if not pool.engines:
        return f"{capacity}."
    kind, count = ("GPU", pool.gpus) if pool.gpus else ("CPU", pool.cpus)
    each = f"{count:g} {kind}{'s' if count > 1 else ''}"
    use = "in turn with the trial on one GPU" if pool.shared else f"{each} each"
    return f"{capacity}, and {pool.engines} engine{'s' if pool.engines > 1 else ''}, {use}."
