"""`task.yaml` of a custom task: additional probes, headlines and attacks. Every key has a default.

block: 512                    # running text is trained on in blocks of so many tokens
anchored: chance              # retrained (default), or chance where no retrained model can exist
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import plain_yaml
from tasks.files import nearest
from tasks.task import Need, ProbeKind, Subset, TaskError, Zero

NAME = "task.yaml"

NEEDS = {"min_k_plus_plus_40": Need.VOCABULARY, "gradient_norm": Need.GRADIENT_NORM}
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
    max_new_tokens: int = Field(32, ge=1)
    stop: tuple[str, ...] = ()
    max_reference_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=2)

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(need for metric, need in NEEDS.items() if metric in self.metrics)


class HeadlineSettings(_Section):
    """A headline: the fields of `tasks.Headline`."""

    probe: str
    metric: str
    chance: float = Field(0.0, ge=0, lt=1)


class OfficialAttacks(_Section):
    """The official attacks of each split: `name` and settings, as in `measure.attacks`."""

    dev: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]


class TaskSettings(_Section):
    """All of `task.yaml`."""

    block: int | None = Field(None, ge=2)
    anchored: Zero = Zero.RETRAINED
    probes: tuple[ProbeSettings, ...] = ()
    knowledge: tuple[HeadlineSettings, ...] = ()
    utility: tuple[HeadlineSettings, ...] = ()
    attacks: OfficialAttacks | None = None


def read_settings(file: Path) -> TaskSettings:
    """The file's settings; the defaults where there is no file.

    Raises:
        TaskError: it is not YAML, or a key is unknown, missing or has a value that is not allowed.
    """
    if not file.is_file():
        return TaskSettings()
    try:
        data = plain_yaml.load(file.read_text(encoding="utf-8")) or {}
        if not isinstance(data, dict):
            raise TaskError(f"{file}: a mapping of settings is expected")
        settings = TaskSettings.model_validate_json(json.dumps(data))
    except ValidationError as error:
        worst = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise TaskError(f"{file}: {_sentence(worst['type'], worst['loc'], worst['msg'], data)}") from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{file}: not YAML of plain settings: {' '.join(str(error).split())}") from None
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


def _sentence(kind: str, loc: tuple[int | str, ...], message: str, data: Any) -> str:
    where = ".".join(map(str, loc))
    if kind == "missing":
        return f"{where}: missing"
    if kind == "extra_forbidden":
        sections = {
            "probes": ProbeSettings,
            "knowledge": HeadlineSettings,
            "utility": HeadlineSettings,
            "attacks": OfficialAttacks,
        }
        section = sections.get(str(loc[0])) if loc[1:] else TaskSettings
        allowed = list((section or TaskSettings).model_fields)
        return f"{where}: unknown key.{nearest(str(loc[-1]), allowed)} (allowed: {', '.join(allowed)})"
    for part in loc:
        data = data[part] if isinstance(data, dict | list) else data
    return f"{where}: {message[0].lower()}{message[1:]}, not {data!r}"
