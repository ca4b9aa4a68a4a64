"""`task.yaml` of a custom task: additional probes, headlines and attacks. Every key has a default.

block: 512                    # running text is trained on in blocks of so many tokens
anchored: chance              # retrained (default), or chance where no retrained model can exist
rouge: unicode                # of the default probes: published (default; a-z and 0-9 alone), or unicode (every script)
probes:
  - name: forget_choice
    file: probes/forget_choice.jsonl
    subset: forget            # forget, retain or holdout
    kind: choice              # generate, logprob or choice
    metrics: [accuracy]
knowledge:                    # forget headlines, and below, retain headlines
  - {probe: forget_choice, metric: accuracy, chance: 0.25}
utility:
  - {probe: retain_qa, metric: probability}
attacks:                      # the official set; `none` is always in it
  dev: [{name: relearn, samples: 4, steps: 8, lr: 5e-4, seed: 1}]
  test: [{name: relearn, samples: 4, steps: 8, lr: 5e-4, seed: 2}]
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import plain_yaml
from tasks.expected import expected
from tasks.files import nearest
from tasks.plain_text import Unreadable, shown
from tasks.task import Need, ProbeKind, Subset, TaskError, Zero

NAME = "task.yaml"

LARGEST = 10**9
"""The largest count: whoever means more has mistyped it."""

NEEDS = {
    "min_k_plus_plus_40": Need.VOCABULARY,
    "min_k_plus_plus_40_open_unlearning": Need.VOCABULARY,
    "gradient_norm": Need.GRADIENT_NORM,
    "gradient_norm_open_unlearning": Need.GRADIENT_NORM_BUT_LAST,
}
"""Metrics that need more from the model than log-probabilities of the answers."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ProbeSettings(_Section):
    """A probe: the fields of `tasks.Probe`, and the file of its rows, relative to the task's folder."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    file: str = Field(pattern=r"^\w[\w .-]*(/\w[\w .-]*)*$")
    subset: Subset
    kind: ProbeKind
    metrics: tuple[str, ...] = Field(min_length=1)
    max_new_tokens: int = Field(default=32, ge=1, le=LARGEST)
    stop: tuple[str, ...] = ()
    max_reference_tokens: int | None = Field(default=None, ge=1, le=LARGEST)
    max_tokens: int | None = Field(default=None, ge=2, le=LARGEST)

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(dict.fromkeys(need for metric, need in NEEDS.items() if metric in self.metrics))


class HeadlineSettings(_Section):
    """A headline: the fields of `tasks.Headline`."""

    probe: str
    metric: str
    chance: float = Field(default=0.0, ge=0, lt=1)


class OfficialAttacks(_Section):
    """The official attacks of each split: `name` and settings, as in `measure.attacks`."""

    dev: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]


class TaskSettings(_Section):
    """All of `task.yaml`."""

    block: int | None = Field(default=None, ge=2, le=LARGEST)
    anchored: Zero = Zero.RETRAINED
    probes: tuple[ProbeSettings, ...] = ()
    knowledge: tuple[HeadlineSettings, ...] = ()
    utility: tuple[HeadlineSettings, ...] = ()
    attacks: OfficialAttacks | None = None
    rouge: Literal["published", "unicode"] = "published"

    @property
    def recall(self) -> str:
        """The metric of generated answers in the default probes."""
        return "rougeL_recall" if self.rouge == "published" else "rougeL_recall_unicode"


def read_settings(file: Path) -> TaskSettings:
    """The file's settings; the defaults where there is no file.

    Raises:
        TaskError: it is not YAML, or a key is unknown, missing or has a value that is not allowed.
    """
    if not os.path.lexists(file):
        return TaskSettings()
    try:
        data = plain_yaml.read(file) or {}
        if not isinstance(data, dict):
            raise Unreadable(f"a mapping of settings is expected, not {shown(data)}")
        settings = TaskSettings.model_validate_json(json.dumps(data))
    except ValidationError as error:
        worst = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise TaskError(f"{file}: {_sentence(worst)}") from None
    except Unreadable as error:
        raise TaskError(f"{file}: {error}") from None
    _check_metrics(file, settings.probes)
    return settings


def _check_metrics(file: Path, probes: Sequence[ProbeSettings]) -> None:
    from tasks.scoring import METRICS  # imported here: it takes a while

    for index, probe in enumerate(probes):
        where = f"{file}: probes.{index}"
        if probe.name in {other.name for other in probes[:index]}:
            raise TaskError(f"{where}.name: {probe.name} is there twice")
        known = [name for name, metric in METRICS.items() if metric.kind is probe.kind]
        for metric in probe.metrics:
            if metric not in known:
                raise TaskError(
                    f"{where}.metrics: {metric} is no metric of a {probe.kind} probe.{nearest(metric, known)} "
                    f"(allowed: {', '.join(known)})"
                )


def _sentence(error: Any) -> str:
    loc = error["loc"]
    where = ".".join(map(str, loc))
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] == "extra_forbidden":
        sections: dict[str, type[_Section]] = {
            "probes": ProbeSettings,
            "knowledge": HeadlineSettings,
            "utility": HeadlineSettings,
            "attacks": OfficialAttacks,
        }
        section = sections.get(str(loc[0])) if loc[1:] else TaskSettings
        allowed = list((section or TaskSettings).model_fields)
        return f"{where}: unknown key.{nearest(str(loc[-1]), allowed)} (allowed: {', '.join(allowed)})"
    return f"{where}: {expected(error)}"
