"""What a table says, in words: who leads, who cannot be told from whom, and how small a difference it can tell.

The page and the terminal print the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leaderboard.board.visible import shortened
from leaderboard.ranking.comparison import Resolution, Verdicts
from leaderboard.ranking.comparison.verdicts import WANTED
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.number import rounded

RULE = (
    "Rank: 1 + the entries whose score is significantly higher (each pair by itself at 5 %, over questions and runs). "
    "Entries that share a rank are not shown to be equal."
)
MOST_NAMED = 3
"""Entries that a sentence names before it counts the others."""
MOST_TIES = 5
"""Sentences about entries that cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparisons of the ranked entries that keep utility, by their scores.

    Attributes:
        ranked: entries that are compared.
        provisional: entries with a score and no rank.
        leader: the entry that is better than all others together (Holm); null where none is.
        first: the entry with the highest score; null where none is ranked.
        ties: by entry, those with a lower score that cannot be told from it.
        resolution: the smallest difference that the table can tell; null with fewer than two ranked entries.
        labels: names of entries.
    """

    ranked: int = 0
    provisional: int = 0
    leader: str | None = None
    first: str | None = None
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resolution: Resolution | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Sequence[Entry], verdicts: Verdicts) -> Verdict:
        ties = {name: others for name, others in verdicts.ties().items() if others}
        return cls(
            len(verdicts.names),
            sum(entry.provisional is not None for entry in entries),
            verdicts.leader(),
            next((entry.entry for entry in entries if entry.entry in verdicts.names), None),
            ties,
            verdicts.resolution(),
            {entry.entry: entry.label for entry in entries},
        )

    def sentences(self) -> list[str]:
        """The verdict for a reader, a sentence or two each."""
        return [*self._leading(), *self._tied(), *self._resolved(), *self._unranked()]

    def _leading(self) -> list[str]:
        if self.ranked < 2 or self.first is None:
            return []
        if self.leader:
            others = "the other" if self.ranked == 2 else f"each of the {self.ranked - 1} others"
            return [f"{self._label(self.leader)} leads: better than {others} (Holm, 5 %)."]
        tied = self.ties.get(self.first, ())
        why = f"cannot be told from {self._named(tied)}" if tied else "is not better than all others together (Holm)"
        return [f"No entry leads: {self._label(self.first)} has the highest score and {why}."]

    def _tied(self) -> list[str]:
        pairs = [(one, others) for one, others in self.ties.items() if one != self.first]
        if not pairs:
            return []
        said = [f"{self._label(one)} from {self._named(others)}" for one, others in pairs[:MOST_TIES]]
        left = len(pairs) - MOST_TIES
        more = f"; and {left} other{'s' * (left > 1)} from some" if left > 0 else ""
        return [f"Cannot be told apart: {'; '.join(said)}{more}."]

    def _resolved(self) -> list[str]:
        if self.resolution is None:
            return []
        told, runs = self.resolution.difference, self.resolution.runs
        text = f"Resolution: differences of {rounded(told)} are told with 80 % power by these questions and {runs} runs"
        if self.resolution.more_runs is None:
            return [f"{text}; {WANTED:g} would take more questions, whatever the number of runs."]
        if self.resolution.more_runs:
            return [f"{text}; {WANTED:g} would take {self.resolution.more_runs} more runs of each."]
        return [f"{text}."]

    def _unranked(self) -> list[str]:
        if not self.provisional:
            return []
        one = self.provisional == 1
        return [
            f"{self.provisional} entr{'y is' if one else 'ies are'} provisional: shown and not ranked. A rank takes "
            "three runs that differ in their seed, five are recommended, and the answers to single questions."
        ]

    def _named(self, names: Sequence[str]) -> str:
        shown = [self._label(name) for name in names[:MOST_NAMED]]
        more = len(names) - len(shown)
        if more:
            return f"{', '.join(shown)} and {more} other{'s' * (more > 1)}"
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"

    def _label(self, name: str) -> str:
        return shortened(self.labels[name])
