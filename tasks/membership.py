"""Membership: do the forgotten texts still look like texts that the model was trained on?

A probe of the forgotten texts and one of texts of the same kind that were not forgotten get a score per text, each
higher for a text that looks less trained on; a summary says how well each score tells the two apart.
"""

from __future__ import annotations

from tasks.task import Need, Subset, Summary

NAME = "membership"

SCORES = ("loss", "zlib", "min_k_40", "min_k_plus_plus_40")
"""What both probes are scored by."""

NEEDS = (Need.VOCABULARY,)
"""What both probes ask of the model, for Min-K%++."""

_AREAS = tuple(f"auc_{score}" for score in SCORES)
_AGAINST_RETRAINED = ("auc_reference", "privleak_min_k_40")


def membership(forgotten: str, others: str, retrained: bool = True) -> Summary:
    """The summary of two probes, forgotten texts first.

    Args:
        retrained: whether the task has a retrained model, which two of the numbers compare with.
    """
    metrics = _AREAS + (_AGAINST_RETRAINED if retrained else ())
    return Summary(NAME, Subset.FORGET, (forgotten, others), metrics)
