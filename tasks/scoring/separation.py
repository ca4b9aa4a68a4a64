"""How well a membership score separates the forget texts from texts that no model has seen: AUC, and MUSE's PrivLeak.

Two tables are read: forget texts, then held-out texts. The AUC is the probability that a held-out text scores higher
than a forget text: 1 where the forget texts are recognised, 1/2 where the score does not separate them, towards 0
where the forget texts are less likely to the model than texts that it never saw.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from tasks.scoring.estimate import Estimate, mean
from tasks.scoring.membership import loss
from tasks.scoring.tables import PerSample, Table, lacking, paired, values

SMALLEST_REFERENCE = 0.01
"""Smallest 1 - AUC of the retrained model that PrivLeak is divided by. It is near 1/2 if that model saw neither set.
Below this the model saw the forget set, or the scores are another model's: quotients such as 5215 mean nothing."""

Summarise = Callable[[Sequence[Table], Sequence[Table]], Estimate]


def auc(forget: Sequence[float], holdout: Sequence[float]) -> Estimate:
    """P(held-out score > forget score), ties counting half.

    The standard error is that of DeLong et al. (1988): the variance of each text's share of right comparisons, over the
    number of texts, summed over both sets. It is 0 where the sets do not overlap, and None if one has a single text.
    """
    m, n = len(forget), len(holdout)
    if not m or not n:
        return Estimate.null("no examples", m + n)
    if any(map(math.isnan, forget)) or any(map(math.isnan, holdout)):
        return Estimate.null("a value is not finite", m + n)
    forget, holdout = sorted(forget), sorted(holdout)
    # Integers: twice the number of right comparisons, so that ties count 1 and the AUC is exact.
    of_forget = [2 * n - bisect_left(holdout, score) - bisect_right(holdout, score) for score in forget]
    of_holdout = [bisect_left(forget, score) + bisect_right(forget, score) for score in holdout]
    forget_error = mean([twice / (2 * n) for twice in of_forget]).stderr
    holdout_error = mean([twice / (2 * m) for twice in of_holdout]).stderr
    error = None if forget_error is None or holdout_error is None else math.hypot(forget_error, holdout_error)
    return Estimate(sum(of_forget) / (2 * m * n), error, m + n)


def auc_of(name: str, compute: PerSample) -> Summarise:
    """The AUC of a metric."""
    return lambda tables, _: auc(*(values(name, compute, table) for table in tables))


def auc_reference(tables: Sequence[Table], retrained: Sequence[Table]) -> Estimate:
    """The AUC of the loss minus the retrained model's loss on the same text."""
    return auc(*(_excess_losses(table, anchor) for table, anchor in zip(tables, retrained, strict=True)))


def privacy_leakage(name: str, compute: PerSample) -> Summarise:
    """PrivLeak (Shi et al. 2024, arXiv 2407.06460) of a metric, in percent.

    100 ((1 - A) - (1 - A_retrained)) / (1 - A_retrained): about -100 at the target, 0 at the retrained model, positive
    where the forget texts have become less likely than held-out ones (100 at A = 0 and A_retrained = 1/2). In MUSE's
    convention an AUC is 1 - A.
    """

    def summary(tables: Sequence[Table], retrained: Sequence[Table]) -> Estimate:
        model, anchor = (auc(*(values(name, compute, table) for table in both)) for both in (tables, retrained))
        if model.value is None:
            return model
        if anchor.value is None:
            return anchor
        reference = 1 - anchor.value
        if reference < SMALLEST_REFERENCE:
            reason = f"the retrained model recognises the forget texts: its AUC is {anchor.value:.4f}, not near 0.5"
            return Estimate.null(reason, model.n)
        share = (1 - model.value) / reference
        error = None
        if model.stderr is not None and anchor.stderr is not None:
            error = 100 * math.hypot(model.stderr, share * anchor.stderr) / reference
        return Estimate(100 * (share - 1), error, model.n)

    return summary


def _excess_losses(table: Table, retrained: Table) -> list[float]:
    excess: list[float] = []
    for sample, reference in paired(table, retrained, "retrained"):
        ours, theirs = loss(sample), loss(reference)
        if ours is None or theirs is None:
            raise lacking(sample, "auc_reference")
        excess.append(ours - theirs)
    return excess
