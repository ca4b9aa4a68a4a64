"""`regrade validate`: what would run, what it would cost, and whether it fits. Runs nothing."""

from __future__ import annotations

from suite.cli.common import Json, Overrides, Spec, console, print_json, read_plan, table


def validate(spec: Spec, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a spec and show its trials and their cost. Computes nothing."""
    from suite.preflight import preflight
    from suite.runners.base import label
    from suite.runners.search import some_trial

    plan = read_plan(spec, overrides)
    search = bool(plan.search.space)
    trials = [some_trial(plan)] if search else plan.trials()
    checked = preflight(trials, plan.measure, plan.runtime)
    if as_json:
        listed = [{"trial": s.id, "label": label(s), "spec": s.canonical, "cost": c.as_dict()} for s, c in checked]
        print_json({"valid": True, "search": plan.search.changed() if search else None, "trials": listed})
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
