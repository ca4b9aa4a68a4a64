"""From one spec file to many trials: cases, grids and search spaces.

A key that a method does not have is not an error in a grid or a space: that axis is skipped for the method. So the
number of zeroth-order samples is only searched where there is a zeroth-order part, and the mixing ratio only for a
hybrid.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from suite.config.canonical import digest
from suite.config.errors import SpecError
from suite.config.numbers import Few, Seed
from suite.config.runtime import RuntimeSpec
from suite.config.settings import Settings, check_plain, dotted, is_whole, keys_of, nearest_key, parse, types_of
from suite.optimizers.hybrid import zeroth_steps
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec, trial
from suite.spec.yaml_file import merged, nested

if TYPE_CHECKING:
    import optuna


MOST = 100_000
"""Trials of a sweep: as a list they fit into memory, and at a second each they take a day."""


class Range(Settings):
    """A range of numbers to search: whole ones where the setting is a whole number, ends included."""

    low: float = Field(ge=-1e15, le=1e15)  # beyond, a float is no exact integer
    high: float = Field(ge=-1e15, le=1e15)
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether both ends are whole numbers."""
        return self.low.is_integer() and self.high.is_integer()

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
    trials: int | None = Field(None, ge=1, le=MOST)
    sampler: Literal["tpe", "random"] = "tpe"
    seed: Seed = 0
    maximize: tuple[Literal["score", "forgetting", "robustness", "utility"], ...] = Field(("score",), min_length=1)
    finalists: int = Field(1, ge=0, le=MOST)
    concurrency: Few | None = None

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
        self._check_size()
        trials: dict[str, TrialSpec] = {}
        used: set[str] = set()
        for case in cases:
            data = merged(self.base, case)
            for point in grid_points(data, self.search.grid, used):
                spec = trial(point)
                trials.setdefault(spec.id, spec)
        _check_known("grid", self.search.grid.keys() - used, known_keys(self.base))
        return list(trials.values())

    def declared(self) -> str | None:
        """The search that the trials come from, for their rows: canonical JSON; None where there is one trial.

        The id is that of everything but the number of trials, so a search that is continued is the same.
        """
        search = self.search
        if search.space:
            what: dict[str, Any] = {"sampler": search.sampler, "seed": search.seed, "space": search.space}
            what |= {"maximize": list(search.maximize)}
        elif search.cases or search.grid:
            what = {"sampler": "grid", "cases": list(search.cases), "grid": search.grid}
        else:
            return None
        base = {key: value for key, value in self.base.items() if key != "seed"}
        id_ = digest([what, base])[:16]
        whole = {"id": id_, **what, **({"trials": search.trials} if search.trials else {})}
        return json.dumps(whole, sort_keys=True, ensure_ascii=False)

    def _check_size(self) -> None:
        """Check that there are not too many points, by their number and without making them."""
        grid, cases = self.search.grid, self.search.cases or ({},)
        most = math.prod(map(len, grid.values())) * len(cases)
        if most <= MOST:
            return
        names = [key for key in grid if key.endswith(".name")]
        count = most
        if math.prod(len(grid[key]) for key in names) * len(cases) <= 1000:  # each with the axes that exist for it
            points = [point for case in cases for point in _named(merged(self.base, case), grid, names)]
            count = sum(math.prod(len(grid[key]) for key in _axes(point, grid)) for point in points)
        if count > MOST:
            factors = [f"{len(values):,} of {dotted('', key)}" for key, values in grid.items()]
            factors += [f"{len(cases):,} cases"] if self.search.cases else []
            raise SpecError(
                f"search.grid: {count:,} points ({', '.join(factors)}), and a sweep has at most {MOST:,}. Leave out "
                "values, or search a space (--search optuna)"
            )

    def suggested(self, draw: optuna.Trial) -> TrialSpec:
        """The trial at a point of the space, drawn key by key.

        Raises:
            SpecError: the settings drawn are not valid together.
        """
        return drawn_trial(suggest(self.base, self.search.space, draw))


SECTIONS: dict[str, type[Settings]] = {"measure": MeasureSpec, "runtime": RuntimeSpec, "search": SearchSpec}
"""What a spec file holds beside the settings of the trial."""


def plan(data: Mapping[str, Any]) -> Plan:
    """Parse and check a spec file's mapping.

    Raises:
        SpecError: naming the key, the allowed values and the nearest match.
    """
    check_plain(data)
    base = {key: value for key, value in data.items() if key not in SECTIONS}
    given = {name: {} if (section := data.get(name)) is None else section for name in SECTIONS}
    _check_top(base)
    _check_axes(given["search"])
    parsed = Plan.model_construct(
        base=base,
        measure=parse(MeasureSpec, given["measure"], "measure."),
        runtime=parse(RuntimeSpec, given["runtime"], "runtime."),
        search=parse(SearchSpec, given["search"], "search."),
    )
    if space := parsed.search.space:
        types = types_of(TrialSpec, None)
        for key, values in space.items():
            drawn = _dimension(key, values)
            if isinstance(drawn, Range) and is_whole(types[key]) and not drawn.is_whole:
                raise SpecError(
                    f"search.space.{key}: is a whole number, and so are its ends: {drawn.low:g} to {drawn.high:g}"
                )
    else:
        parsed.trials()
    return parsed


def _check_top(base: Mapping[str, Any]) -> None:
    """Check the keys that stand in no section: `lr` alone is meant for the optimizer, `attacks` for the measurement."""
    for key in sorted(base.keys() - TrialSpec.model_fields.keys()):
        known = known_keys(base).union(*(keys_of(kind, {}, f"{name}.") for name, kind in SECTIONS.items()))
        allowed = ", ".join([*TrialSpec.model_fields, *SECTIONS])
        first, _, rest = key.partition(".")
        hint = f" In a file it stands in its section, {first}: {{{rest}: ...}}." if key in known else ""
        raise SpecError(f"{dotted('', key)}: unknown key.{hint or nearest_key(key, known)} (allowed: {allowed})")


def _check_axes(search: Any) -> None:
    """Check the keys of a grid and of a space. Each is one word, since a mapping there is a range of values."""
    for kind in ("grid", "space"):
        axes = search.get(kind) if isinstance(search, Mapping) else None
        for key, values in axes.items() if isinstance(axes, Mapping) else ():
            if isinstance(values, Mapping) and not values.keys() & Range.model_fields.keys() and values:
                inside = dotted(key, next(iter(values)))
                raise SpecError(
                    f"search.{kind}.{dotted('', key)}: a key of a {kind} is one word, {inside}: [...]. On the command "
                    f"line write search.{kind}='{{{inside}: [...]}}'"
                )
            if values in ([], ()):
                raise SpecError(f"search.{kind}.{dotted('', key)}: an empty list. Give it a value, or leave it out")
        if kind == "space" and isinstance(axes, Mapping):
            _check_known("space", axes.keys() - possible_keys(), possible_keys())
    for key in sorted(search.keys() - SearchSpec.model_fields.keys()) if isinstance(search, Mapping) else ():
        if key.rpartition(".")[2] in {known.rpartition(".")[2] for known in possible_keys()}:
            hint = nearest_key(key, possible_keys(), "search.space.") or f" Write search.space.{key}"
            raise SpecError(f"search.{dotted('', key)}: unknown key. Settings to search stand in search.space.{hint}")


def _check_known(kind: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    for key in sorted(unknown):
        what = "no trial has such a setting" if kind == "grid" else "unknown key"
        raise SpecError(f"search.{kind}: {dotted('', key)}: {what}.{nearest_key(key, known)}")


def grid_points(
    data: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], used: set[str]
) -> Iterator[Mapping[str, Any]]:
    """Every combination of the axes that exist for it. Names are chosen first: they decide which other keys exist.

    Args:
        used: keys of the axes that exist for some point, added to here.
    """
    names = [key for key in grid if key.endswith(".name")]
    for point in _named(data, grid, names):
        axes = _axes(point, grid)
        used.update(names, axes)
        for values in product(*(grid[key] for key in axes)):
            combination = point
            for key, value in zip(axes, values, strict=True):
                combination = merged(combination, nested(key, value))
            yield combination


def _named(
    data: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    """Every combination of the axes that are names."""
    for chosen in product(*(grid[key] for key in names)):
        point = data
        for key, value in zip(names, chosen, strict=True):
            point = merged(point, nested(key, value))
        yield point


def _axes(point: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """The other axes that exist for a point."""
    known = known_keys(point)
    return [key for key in grid if not key.endswith(".name") and key in known]


def suggest(base: Mapping[str, Any], space: Mapping[str, Any], draw: optuna.Trial) -> dict[str, Any]:
    """A trial's settings, with those keys of the space that exist drawn by Optuna (define-by-run)."""
    data = dict(base)
    for key in sorted(space, key=lambda key: not key.endswith(".name")):
        if not exists(data, key):
            continue
        values = _dimension(key, space[key])
        if isinstance(values, Range):
            if is_whole(types_of(TrialSpec, data)[key]):
                value: Any = draw.suggest_int(key, int(values.low), int(values.high), log=values.log)
            else:
                value = draw.suggest_float(key, values.low, values.high, log=values.log)
        else:
            with warnings.catch_warnings(action="ignore"):  # lists are no choices for a database, which is not used
                value = draw.suggest_categorical(key, values)
        data = merged(data, nested(key, value))
    return data


def drawn_trial(data: Mapping[str, Any]) -> TrialSpec:
    """The trial of settings that were drawn. A share of steps that rounds to none or to all of them is 0 or 1.

    Whoever writes such a share is told that nothing would alternate; a draw between 0 and 1 means the pure optimizer.

    Raises:
        SpecError: the settings are not valid together.
    """
    optimizer, steps = data.get("optimizer"), data.get("steps")
    ratio = optimizer.get("zo_ratio") if isinstance(optimizer, Mapping) else None
    if isinstance(ratio, float) and isinstance(steps, int) and 0 < ratio < 1:
        zeroth = zeroth_steps(steps, ratio)
        if zeroth in (0, steps):
            data = merged(data, nested("optimizer.zo_ratio", float(zeroth > 0)))
    return trial(data)


def exists(data: Mapping[str, Any], key: str) -> bool:
    """Whether a trial with these names has a setting of this key."""
    return key in known_keys(data)


def known_keys(data: Mapping[str, Any]) -> set[str]:
    """Keys of the settings that a trial with these names has, dotted, sections included."""
    return keys_of(TrialSpec, data)


def possible_keys() -> set[str]:
    """Keys of the settings that at least one possible trial has."""
    return keys_of(TrialSpec, None)


def _dimension(key: str, values: Any) -> list[Any] | Range:
    if isinstance(values, Mapping):
        return parse(Range, values, f"search.space.{key}.")
    if isinstance(values, list | tuple) and values:
        return list(values)
    raise SpecError(f"search.space.{key}: a list of values or a range {{low: ..., high: ..., log: true}} is expected")
