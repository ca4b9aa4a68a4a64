"""A trial with its headlines, as they are and at matched utility, which entries are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leaderboard.ranking.comparison import Replicates
from leaderboard.ranking.headlines import Headlines
from leaderboard.ranking.mixing_curve import Crossing
from leaderboard.ranking.retention_matching import SHARE
from tasks.scoring.estimate import Estimate

NO_CURVE = Estimate.null("no curve was measured")


@dataclass(frozen=True, slots=True)
class MatchedHeadlines:
    """A trial's headlines after its weights were mixed with the target's, and the share of its weights in the mix.

    Attributes:
        kind: how it was matched, `curve` or `share`.
        barrier: of utility on the way to the target.
        reading: weight and barrier in every replicate, of a curve; None where items are not known.
        replicates: those of the headlines.
    """

    headlines: Headlines
    weight: Estimate
    replicates: Replicates | None = None
    kind: str = SHARE
    barrier: Estimate = NO_CURVE
    reading: Crossing | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A row of the table `trials` with its headlines, all by one engine.

    Attributes:
        engine: None where no engine measured it.
        left_out: measurements of the trial that belong to other anchors.
        replicates: its headlines with other items; None where its items are not known.
        not_compared: why they are not.
    """

    row: Mapping[str, Any]
    engine: str | None
    headlines: Headlines
    matched: MatchedHeadlines | None = None
    left_out: int = 0
    replicates: Replicates | None = None
    not_compared: str | None = None

    @property
    def pairing(self) -> str:
        """What a run is paired by with runs of other entries: its seed; one without a seed belongs to no other."""
        return self.row["trial"] if self.row["seed"] is None else f"seed {self.row['seed']}"
