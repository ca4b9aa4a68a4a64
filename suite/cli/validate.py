"""`regrade validate`: what would run, what it would cost, and whether it fits. Runs nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from suite.cli.common import EngineName, Json, Overrides, Spec, asked_engine, console, print_json, read_plan, table

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
    from suite.runners.base import label
    from suite.runners.search import some_trial
    from suite.trials.preflight import preflight

    plan = read_plan(spec, overrides, asked_engine(engine))
    search = bool(plan.search.space)
    trials = [some_trial(plan)] if search else plan.trials()
    checked = preflight(trials, plan.measure, plan.runtime, here=not address)
    there, room = _places(plan, address)
    if as_json:
        listed = [{"trial": s.id, "label": label(s), "spec": s.canonical, "cost": c.as_dict()} for s, c in checked]
        search = plan.search.changed() if search else None
        print_json({"valid": True, "search": search, "trials": listed, "places": asdict(there)})
        return
    rows = [
        [
            label(s),
            s.id[:12],
            str(c.steps),
            str(c.value_calls),
            str(c.gradient_calls),
            str(c.curvature_calls),
            str(c.evaluations),
        ]
        for s, c in checked
    ]
    names = ["trial", "id", "steps", "values", "gradients", "curvature", "evaluations"]
    table(f"{spec}: valid", names, rows)
    if search:
        keys = ", ".join(plan.search.space)
        console().print(f"An Optuna search of {plan.search.trials} trials over {keys}; the one above is an example.")
    console().print("Evaluations count the anchors', which all trials share.")
    console().print(_said(there, room, address), soft_wrap=True)


def _places(plan: Plan, address: str | None) -> tuple[Placement, Resources]:
    """How trials and engines are laid out, and on what."""
    from suite.cluster.placement import local_resources, plan_placement
    from suite.engines.choosing import check_here, pool_resources

    if not address:
        return check_here(plan.measure, plan.runtime), local_resources()
    from suite.cluster.connection import connected

    with connected(address) as room:
        return plan_placement(room, pool_resources(plan.measure), plan.runtime), room


def _said(there: Placement, room: Resources, address: str | None) -> str:
    where = f"The cluster at {address}" if address else "This machine"
    said = f"{where} has {room}: {there.trials} trial{'s' if there.trials > 1 else ''} at a time"
    if not there.pool.engines:
        return f"{said}."
    kind, count = ("GPU", there.pool.gpus) if there.pool.gpus else ("CPU", there.pool.cpus)
    each = f"{count:g} {kind}{'s' if count > 1 else ''}"
    taken = "in turn with the trial on one GPU" if there.pool.shared else f"{each} each"
    return f"{said}, and {there.pool.engines} vLLM engine{'s' if there.pool.engines > 1 else ''}, {taken}."
