"""Membership inference: do the forgotten texts still look like training data of the model?

Each text of two probes, forgotten texts and other texts of the same kind, gets membership scores; a higher score means
less likely trained on. A summary says how well each score separates the two probes.
"""

from __future__ import annotations

from tasks.task import Need, Subset, Summary

NAME = "membership"

SCORES = ("loss", "zlib", "min_k_40", "min_k_plus_plus_40")
"""Metrics of both probes."""

NEEDS = (Need.VOCABULARY,)
"""What both probes need from the model, for Min-K%++."""

_AREAS = tuple(f"auc_{score}" for score in SCORES)
_AGAINST_RETRAINED = ("auc_reference", "privleak_min_k_40")


def membership(forgotten: str, others: str, retrained: bool = True) -> Summary:
    """The summary of two probes, forgotten texts first.

    Args:
        retrained: whether the task has a retrained model; two of the metrics compare with it.
    """
    metrics = _AREAS + (_AGAINST_RETRAINED if retrained else ())
    return Summary(NAME, Subset.FORGET, (forgotten, others), metrics)
