"""From one spec file to many trials: cases, grids and search spaces.

A key that a method does not have is not an error in a grid or a space: that axis is skipped for the method. So the
number of zeroth-order samples is only searched where there is a zeroth-order part, and the mixing ratio only for a
hybrid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from suite.config.errors import SpecError
from suite.config.numbers import Count, Seed, Whole
from suite.config.runtime import RuntimeSpec
from suite.config.settings import Settings, nearest, parse, settings_in
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec, trial
from suite.spec.yaml_file import merged, nested

if TYPE_CHECKING:
    import optuna


class Range(Settings):
    """A range of numbers to search; integers when both ends are integers."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be under high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low:g}")
        return self


class SearchSpec(Settings):
    """Many trials from one.

    Attributes:
        cases: sets of settings that each override the file's trial; every grid axis is crossed with every case.
        grid: values by key, crossed with each other.
        space: by key, a list of values or a range {low, high, log}: searched by Optuna.
        trials: number of trials of an Optuna search.
        sampler: Optuna's sampler.
        seed: of the sampler.
        maximize: headlines that the search maximises, on dev; several give a Pareto front.
        finalists: how many of a search's best trials are then measured on test.
        concurrency: trials at a time on Ray; by default as many as there are CPUs or GPUs.
    """

    cases: tuple[dict[str, Any], ...] = ()
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    trials: Count | None = None
    sampler: Literal["tpe", "random"] = "tpe"
    seed: Seed = 0
    maximize: tuple[Literal["score", "forgetting", "robustness", "utility"], ...] = Field(("score",), min_length=1)
    finalists: Whole = 1
    concurrency: Count | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> SearchSpec:
        if self.space and (self.grid or self.cases):
            raise ValueError("a search has a grid (with cases) or a space, not both")
        if self.space and self.trials is None:
            raise ValueError("a space needs a number of trials: search.trials=32, or --trials 32")
        if self.trials is not None and not self.space:
            raise ValueError("trials counts the draws from a space, and there is none: a grid is run whole")
        return self


class Plan(Settings):
    """A parsed spec file: one trial or many, how they are measured, where they run."""

    base: dict[str, Any]
    measure: MeasureSpec = MeasureSpec()
    runtime: RuntimeSpec = RuntimeSpec()
    search: SearchSpec = SearchSpec()

    def trials(self) -> list[TrialSpec]:
        """The trials of a grid (or the file's one trial), in order, without duplicates.

        Raises:
            SpecError: a trial is not valid, or no trial has a key of the grid.
        """
        cases = self.search.cases or ({},)
        trials: dict[str, TrialSpec] = {}
        used: set[str] = set()
        for case in cases:
            data = merged(self.base, case)
            for point in grid_points(data, self.search.grid, used):
                spec = trial(point)
                trials.setdefault(spec.id, spec)
        for key in self.search.grid.keys() - used:
            raise SpecError(f"search.grid: {key}: no trial has such a setting.{nearest(key, known_keys(self.base))}")
        return list(trials.values())

    def suggested(self, draw: optuna.Trial) -> TrialSpec:
        """The trial at a point of the space, drawn key by key.

        Raises:
            SpecError: the settings drawn are not valid together.
        """
        return trial(suggest(self.base, self.search.space, draw))


def plan(data: Mapping[str, Any]) -> Plan:
    """Parse and check a spec file's mapping.

    Raises:
        SpecError: naming the key, the allowed values and the nearest match.
    """
    base = dict(data)
    sections = {name: base.pop(name, None) or {} for name in ("measure", "runtime", "search")}
    measure = parse(MeasureSpec, sections["measure"], "measure.")
    runtime = parse(RuntimeSpec, sections["runtime"], "runtime.")
    search = parse(SearchSpec, sections["search"], "search.")
    parsed = Plan.model_construct(base=base, measure=measure, runtime=runtime, search=search)
    if search.space:
        for key, values in search.space.items():
            _dimension(key, values)
        if unknown := search.space.keys() - possible_keys():
            key = min(unknown)
            raise SpecError(f"search.space: {key}: unknown key.{nearest(key, possible_keys())}")
    else:
        parsed.trials()
    return parsed


def grid_points(data: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], used: set[str]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes that exist for it. Names are chosen first: they decide which other keys exist.

    Args:
        used: keys of the axes that exist for some point, added to here.
    """
    names = [key for key in grid if key.endswith(".name")]
    rest = [key for key in grid if key not in names]
    for chosen in product(*(grid[key] for key in names)):
        point = dict(data)
        for key, value in zip(names, chosen, strict=True):
            point = merged(point, nested(key, value))
        axes = [key for key in rest if exists(point, key)]
        used.update(names, axes)
        for values in product(*(grid[key] for key in axes)):
            combination = point
            for key, value in zip(axes, values, strict=True):
                combination = merged(combination, nested(key, value))
            yield combination


def suggest(base: Mapping[str, Any], space: Mapping[str, Any], draw: optuna.Trial) -> dict[str, Any]:
    """A trial's settings, with those keys of the space that exist drawn by Optuna (define-by-run)."""
    data = dict(base)
    for key in sorted(space, key=lambda key: not key.endswith(".name")):
        if not exists(data, key):
            continue
        values = _dimension(key, space[key])
        if isinstance(values, Range):
            if float(values.low).is_integer() and float(values.high).is_integer():
                value: Any = draw.suggest_int(key, int(values.low), int(values.high), log=values.log)
            else:
                value = draw.suggest_float(key, values.low, values.high, log=values.log)
        else:
            value = draw.suggest_categorical(key, values)
        data = merged(data, nested(key, value))
    return data


def exists(data: Mapping[str, Any], key: str) -> bool:
    """Whether a trial with these names has a setting of this key."""
    return key in known_keys(data)


def known_keys(data: Mapping[str, Any]) -> set[str]:
    """Keys of the settings that a trial with these names has, dotted, sections included."""
    return _keys(TrialSpec, data)


def possible_keys() -> set[str]:
    """Keys of the settings that at least one possible trial has."""
    return _keys(TrialSpec, None)


def _keys(kind: type[Settings], data: Any, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in kind.model_fields.items():
        keys.add(prefix + name)
        section, members = settings_in(field.annotation)
        below = data.get(name) if isinstance(data, Mapping) else None
        if members and data is not None:
            chosen = below if isinstance(below, str) else (below or {}).get("name", field_name(field))
            section = members.get(chosen)
            keys.add(f"{prefix}{name}.name")
        for one in [section] if section else members.values() if data is None else []:
            keys |= _keys(
                one, None if data is None else (below if isinstance(below, Mapping) else {}), f"{prefix}{name}."
            )
    return keys


def field_name(field: Any) -> str | None:
    """Name of a field's default section, if it has one."""
    default = field.get_default(call_default_factory=True)
    return getattr(default, "name", None)


def _dimension(key: str, values: Any) -> list[Any] | Range:
    if isinstance(values, Mapping):
        return parse(Range, values, f"search.space.{key}.")
    if isinstance(values, list | tuple) and values:
        if any(isinstance(v, float) and not math.isfinite(v) for v in values):
            raise SpecError(f"search.space.{key}: a value is not finite")
        return list(values)
    raise SpecError(f"search.space.{key}: a list of values or a range {{low: ..., high: ..., log: true}} is expected")
