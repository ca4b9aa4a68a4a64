"""`regrade ls`: the entries of each axis."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from suite.cli.common import Json, print_json, table
from suite.cli.outputs import notice


class Axis(StrEnum):
    TASKS = "tasks"
    OBJECTIVES = "objectives"
    OPTIMIZERS = "optimizers"
    SMOOTHINGS = "smoothings"
    ADAPTERS = "adapters"
    ATTACKS = "attacks"
    ENGINES = "engines"
    METRICS = "metrics"
    EXTRAS = "extras"
    DIAGNOSTICS = "diagnostics"


def ls(
    named: Annotated[str, typer.Argument(metavar="AXIS", help=f"What to list: {', '.join(Axis)}.", show_default=False)],
    as_json: Json = False,
) -> None:
    """List tasks, objectives, optimizers, smoothings, adapters, attacks, engines, metrics, extras or diagnostics."""
    from tasks.plugins import added

    axis = _axis(named)
    rows = _rows(axis)
    found = [*added(f"regrade.{axis}"), *(added("regrade.summary_metrics") if axis is Axis.METRICS else ())]
    if packages := {one.name: one.package for one in found if one.entry is not None}:
        rows = [row | {"package": packages.get(row["name"], "")} for row in rows]
    for one in found:
        if one.problem:
            notice(one.problem)
    if as_json:
        print_json(rows)
    else:
        table(axis.value, list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def _axis(named: str) -> Axis:
    from suite.config.errors import SpecError
    from tasks.files import nearest
    from tasks.plain_text import SHOWN, cut

    if named not in list(Axis):
        raise SpecError(f"ls {cut(named)}: unknown.{nearest(named[:SHOWN], Axis)} (allowed: {', '.join(Axis)})")
    return Axis(named)


def _rows(axis: Axis) -> list[dict[str, Any]]:
    match axis:
        case Axis.TASKS:
            from tasks import TASKS

            families = TASKS.families.values()
            listed = [(entry.name, entry.attack_sets, entry.summary) for entry in TASKS.values()]
            listed += [(f.title, f.entry(f.member).attack_sets, f.summary) for f in families]
            return [{"name": name, "attacks": ", ".join(sets), "summary": what} for name, sets, what in listed]
        case Axis.EXTRAS:
            from tasks import EXTRAS

            return [
                {"name": name, "summary": (extra.__doc__ or "").strip().splitlines()[0]}
                for name, extra in EXTRAS.items()
            ]
        case Axis.METRICS:
            from tasks.scoring import METRICS, SUMMARIES, Metric, SummaryMetric

            metrics: list[Metric | SummaryMetric] = [*METRICS.values(), *SUMMARIES.values()]
            probe = {m.name: str(m.kind) for m in METRICS.values()}
            probe |= {m.name: f"summary beside {m.against}" if m.against else "summary" for m in SUMMARIES.values()}
            return [
                {"name": m.name, "probe": probe[m.name], "more knowledge": "up" if m.up else "down", "source": m.source}
                for m in metrics
            ]
        case Axis.OPTIMIZERS:
            from suite.optimizers import OPTIMIZERS

            return [
                {
                    "name": name,
                    "grade": str(kind.grade),
                    "control": kind.control,
                    "asks per step": kind.queries_per_step,
                    "source": kind.source,
                    "summary": OPTIMIZERS.summary(name),
                }
                for name, kind in OPTIMIZERS.items()
            ]
        case Axis.ATTACKS:
            from suite.attacks import ATTACKS

            return [
                {
                    "name": name,
                    "needs": str(kind.access),
                    "seeds": "seed" in kind.Settings.model_fields,
                    "source": kind.source,
                    "summary": ATTACKS.summary(name),
                }
                for name, kind in ATTACKS.items()
            ]
        case Axis.DIAGNOSTICS:
            from suite.evaluation.landscape import DIAGNOSTICS

            return [
                {
                    "name": name,
                    "reads": ", ".join(["weights", *["texts"] * kind.reads_texts, *["anchors"] * kind.reads_anchors]),
                    "source": kind.source,
                    "summary": DIAGNOSTICS.summary(name),
                }
                for name, kind in DIAGNOSTICS.items()
            ]
        case _:
            from suite.adapters import ADAPTERS
            from suite.config.registry import Registry
            from suite.engines import ENGINES
            from suite.objectives import OBJECTIVES
            from suite.smoothing import SMOOTHINGS

            registries: dict[Axis, Registry[Any]] = {
                Axis.OBJECTIVES: OBJECTIVES,
                Axis.SMOOTHINGS: SMOOTHINGS,
                Axis.ADAPTERS: ADAPTERS,
                Axis.ENGINES: ENGINES,
            }
            registry = registries[axis]
            return [{"name": name, "summary": registry.summary(name)} for name in registry]


def _cell(value: Any) -> str:
    return ("yes" if value else "") if isinstance(value, bool) else str(value)
