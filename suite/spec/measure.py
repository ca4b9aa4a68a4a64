"""Settings of the measurement: attacks, splits, engine and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field, field_validator

from suite.attacks import Attack, attack
from suite.config.errors import SpecError
from suite.config.numbers import MOST_SEEDS, Count, Seed, each_once
from suite.config.settings import nearest
from suite.engines.settings import EngineSettings
from tasks import EXTRAS, TASKS
from tasks.plain_text import cut, shown
from tasks.task import Split


class Questions(StrEnum):
    """Which questions are asked."""

    DEV = "dev"
    TEST = "test"
    ALL = "all"
    """Those of both splits together, without an attack."""


class MeasureSpec(EngineSettings):
    """How a trial's result is attacked and evaluated. Not part of the trial's id, so attacks can be added later.

    Attributes:
        attacks: `official`, the task's newest set; the name of an older set; or a list of attacks.
        attack_seeds: every attack that draws at random is carried out once with each of these seeds, in place of its
            own, and the mean over them counts; attacks without randomness are carried out once. By default each attack
            has its own seed.
        splits: `test` for headlines; a search sees `dev`; `all`, alone or beside them, for published statistics: the
            questions of both splits together, without an attack.
        engine: the inference engine (`regrade ls engines`). Its own settings stand in a section with its name.
        batch_tokens: positions per batch of the transformers engine, padding included.
        limit: questions per probe, the first ones; all by default. Rows say how many there were.
        also: extras to measure besides the task's own probes (`regrade ls extras`): general ability, perplexity, costly
            membership scores.
        match: utility floor of retention matching: every headline is given once more for the unlearned weights mixed
            back toward the target until utility is at the floor, on each split that is attacked (see
            `suite.evaluation.retention_matching`). The board's floor is 0.9. Attacks are carried out on up to six
            further sets of weights, mostly on none to four; null turns retention matching off.
        nulls: whether null trials follow the trials: per pair of anchors and seed (three seeds at most) the target plus
            a random change of the weights, as large as the median of the trials' changes (see
            `suite.runners.null_trials`). By default one for every five trials of a sweep, so a single trial has none.
        landscape: loss-landscape diagnostics of the unlearned weights (`regrade ls diagnostics`); costly, so none by
            default. Whether there are such is checked where the trials are.
    """

    attacks: str | tuple[dict[str, Any], ...] = "official"
    attack_seeds: tuple[Seed, ...] | None = Field(None, min_length=1, max_length=MOST_SEEDS)
    splits: tuple[Questions, ...] = Field((Questions.TEST,), min_length=1)
    limit: Count | None = None
    also: tuple[str, ...] = ()
    match: float | None = Field(0.9, gt=0, le=1)
    nulls: bool | None = None
    landscape: tuple[str, ...] = ()

    @field_validator("attacks", mode="before")
    @classmethod
    def _a_set_or_a_list(cls, attacks: Any) -> Any:
        if isinstance(attacks, str):
            return attacks
        if not isinstance(attacks, list | tuple):
            raise ValueError(f"the name of a set or a list of attacks is expected, not {shown(attacks)}")
        for index, one in enumerate(attacks):
            if not isinstance(one, dict):
                raise ValueError(f"{index}: a section is expected, e.g. {{name: rtn, bits: 4}}, not {shown(one)}")
        return tuple(attacks)

    @field_validator("splits", mode="before")
    @classmethod
    def _by_name(cls, splits: Any) -> Any:
        """A `Split` of a task counts as the questions of its name."""
        if not isinstance(splits, list | tuple):
            return splits
        return tuple(Questions(one) if isinstance(one, str) and one in set(Questions) else one for one in splits)

    @field_validator("also", "splits", "landscape", "attack_seeds")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else each_once(values)

    @field_validator("also")
    @classmethod
    def _known_extras(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        for name in also:
            if name not in EXTRAS:
                raise ValueError(f"unknown: {cut(name)}.{nearest(name, EXTRAS)} (allowed: {', '.join(EXTRAS)})")
        return also

    @property
    def attacked(self) -> tuple[Split, ...]:
        """The splits that are attacked, and so have headlines."""
        return tuple(Split(split) for split in self.splits if split != Questions.ALL)

    @property
    def asked(self) -> tuple[Split, ...]:
        """The splits whose questions are asked."""
        return self.attacked if Questions.ALL not in self.splits else tuple(dict.fromkeys([*self.attacked, *Split]))

    def attacks_for(self, task: str, split: Split) -> tuple[Attack, ...]:
        """The attacks on a split, each with every seed that it is carried out with; the first is always `none`.

        Raises:
            SpecError: unknown set, attack or setting.
        """
        chosen = self.covered(task, split)
        if self.attack_seeds is None:
            return chosen
        seeded = [[a.with_seed(seed) for seed in self.attack_seeds] if a.random else [a] for a in chosen]
        return tuple({a.name: a for same in seeded for a in same}.values())

    def covered(self, task: str, split: Split) -> tuple[Attack, ...]:
        """The attacks that robustness on a split covers, with their own seeds; the first is always `none`.

        Raises:
            SpecError: unknown set, attack or setting.
        """
        sets = TASKS[task].attack_sets
        if isinstance(self.attacks, str):
            name = TASKS[task].official if self.attacks == "official" else self.attacks
            if name not in sets:
                known = ", ".join(["official", *sets])
                raise SpecError(f"measure.attacks: unknown set: {cut(name)}.{nearest(name, sets)} (allowed: {known})")
            chosen: Iterable[Mapping[str, Any]] = sets[name][split]
        else:
            chosen = self.attacks
        attacks = {a.name: a for a in [attack({"name": "none"}), *map(attack, chosen)]}
        return tuple(attacks.values())[: None if split in self.splits else 1]
