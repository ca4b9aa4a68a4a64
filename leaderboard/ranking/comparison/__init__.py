"""Tells entries apart: items and runs are drawn again, for all entries together (docs/statistics.md)."""

from leaderboard.ranking.comparison.crossfit import Cell, Cells, Replicates, Units, replicate, smallest_share
from leaderboard.ranking.comparison.difference import Difference, Replicated, Spread, compared, spread
from leaderboard.ranking.comparison.resampling import REPLICATES, Resampling
from leaderboard.ranking.comparison.verdicts import Resolution, Verdicts

__all__ = [
    "REPLICATES",
    "Cell",
    "Cells",
    "Difference",
    "Replicated",
    "Replicates",
    "Resampling",
    "Resolution",
    "Spread",
    "Units",
    "Verdicts",
    "compared",
    "replicate",
    "smallest_share",
    "spread",
]
