"""One published number beside ours: whether it comes out, and if not, of which variant it is the number."""

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
"""Ends the name of a metric that is computed from scores of the log itself."""


class Verdict(StrEnum):
    EQUAL = "equal"
    """Our metric gives the published number."""
    TAKEN = "taken"
    """So does our mean or AUC of scores that the log gives without what they were computed from."""
    VARIANT = "variant"
    """The published number is another variant's, which the note names."""
    DIFFERS = "differs"
    """Neither gives it."""
    NULL = "null"
    """One of the two is missing; the note says why."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What the published formula makes of the same samples, and in which way it is not ours."""

    value: float
    name: str


@dataclass(frozen=True, slots=True)
class Line:
    """A published number and what our metric makes of the same examples.

    Attributes:
        key: the metric's name in the log.
        probe, metric: ours, as they stand in the board's rows.
        published: the aggregate; None where it is null.
        ours: our metric of the samples in the log.
        variants: published formulas, where they are others than ours.
        unlike: examples whose published number neither our metric nor its variant gives; None where there are none to
            compare with.
        remark: what is to be known of the number besides.
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
        """The side of the probe, which its name begins with; real authors and world facts are to be kept."""
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
        return None if self.published is None or not self.ours.known else self.ours.value - self.published

    @property
    def verdict(self) -> Verdict:
        if self.published is None or not math.isfinite(self.published):
            return Verdict.NULL
        if self.ours.known and self._is_published(self.ours.value):
            return Verdict.TAKEN if self.metric.endswith(PUBLISHED) else Verdict.EQUAL
        if self.explained:
            return Verdict.VARIANT
        return Verdict.DIFFERS if self.ours.known else Verdict.NULL

    @property
    def explained(self) -> Variant | None:
        """The variant that the published number is."""
        return next((variant for variant in self.variants if self._is_published(variant.value)), None)

    @property
    def note(self) -> str:
        said = [self.ours.reason, self.explained.name if self.verdict is Verdict.VARIANT else "", self.remark]
        if self.published is None:
            said.append("nothing was published")
        elif not math.isfinite(self.published):
            said.append(f"what was published is {self.published}")
        return "; ".join(filter(None, said))

    def as_json(self) -> dict[str, Any]:
        """The line as JSON values; what is not finite is null."""
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
        """Whether a value is the published one to a millionth; a p-value, which may be tiny, to a millionth part."""
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
