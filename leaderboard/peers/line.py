"""One published number beside ours: whether they are equal, and if not, which variant the published one is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tasks.scoring import METRICS, SUMMARIES, Estimate
from tasks.task import Subset

TOLERANCE = 1e-6
"""Logs hold float32 losses and probabilities."""

PUBLISHED = "_published"
"""Suffix of metrics that are computed from scores in the log."""


class Verdict(StrEnum):
    """How a published number compares with ours."""

    EQUAL = "equal"
    """Our metric equals the published number."""
    FROM_LOG_SCORES = "taken"
    """Our mean or AUC equals it, computed from scores whose inputs are not in the log."""
    VARIANT = "variant"
    """The published number is that of another variant, which the note names."""
    DIFFERS = "differs"
    """Neither our metric nor a variant equals it."""
    NULL = "null"
    """One of the two is missing; the note says why."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The published formula's value on the same samples, and how the formula differs from ours."""

    value: float
    name: str


@dataclass(frozen=True, slots=True)
class Line:
    """A published number and our metric on the same examples.

    Attributes:
        key: the metric's name in the log.
        probe, metric: our names, as in the board's rows.
        published: the aggregate; None where it is null.
        ours: our metric on the samples of the log.
        variants: published formulas, where they differ from ours.
        unlike: number of examples whose published number equals neither our metric nor its variant; None where there
            are no numbers of examples.
        remark: a further note on the number.
    """

    key: str
    probe: str
    metric: str
    published: float | None
    ours: Estimate
    variants: tuple[Variant, ...] = ()
    unlike: int | None = None
    remark: str = ""

    @property
    def subset(self) -> Subset:
        """The probe's subset, from the beginning of its name; real authors and world facts are retained knowledge."""
        if self.probe == "membership":
            return Subset.FORGET
        return next((side for side in Subset if self.probe.startswith(side)), Subset.RETAIN)

    @property
    def up(self) -> bool:
        """Whether a higher number means that the model knows more."""
        name = self.metric.removesuffix(PUBLISHED)
        return (METRICS.get(name) or SUMMARIES[name]).up

    @property
    def difference(self) -> float | None:
        """Ours minus the published one."""
        return None if self.published is None or self.ours.value is None else self.ours.value - self.published

    @property
    def verdict(self) -> Verdict:
        if self.published is None or not math.isfinite(self.published):
            return Verdict.NULL
        if self.ours.value is not None and self._is_published(self.ours.value):
            return Verdict.FROM_LOG_SCORES if self.metric.endswith(PUBLISHED) else Verdict.EQUAL
        if self.explained:
            return Verdict.VARIANT
        return Verdict.DIFFERS if self.ours.known else Verdict.NULL

    @property
    def explained(self) -> Variant | None:
        """The variant that equals the published number, if any."""
        return next((variant for variant in self.variants if self._is_published(variant.value)), None)

    @property
    def note(self) -> str:
        variant = self.explained if self.verdict is Verdict.VARIANT else None
        parts = [self.ours.reason, variant.name if variant else "", self.remark]
        if self.published is None:
            parts.append("nothing was published")
        elif not math.isfinite(self.published):
            parts.append(f"what was published is {self.published}")
        return "; ".join(filter(None, parts))

    def as_json(self) -> dict[str, Any]:
        """The line as JSON values; numbers that are not finite are null."""
        return {
            "key": self.key,
            "probe": self.probe,
            "metric": self.metric,
            "published": _finite(self.published),
            "ours": self.ours.value,
            "stderr": self.ours.stderr,
            "n": self.ours.n,
            "difference": _finite(self.difference),
            "variant": next((_finite(v.value) for v in (self.explained, *self.variants) if v), None),
            "verdict": str(self.verdict),
            "unlike": self.unlike,
            "note": self.note,
        }

    def _is_published(self, value: float) -> bool:
        """Whether a value is the published one to 1e-6; relative for a p-value, which may be tiny, else absolute."""
        if self.published is None:
            return False
        by_ratio = self.metric == "forget_quality"
        return math.isclose(
            value,
            self.published,
            rel_tol=TOLERANCE if by_ratio else 0.0,
            abs_tol=0.0 if by_ratio else TOLERANCE,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
