"""TOFU's forget quality: are the truth ratios distributed like those of a model that never saw the forget set?

The p-value of a two-sample Kolmogorov-Smirnov test between the model's truth ratios and the retrained model's, one per
question (Maini et al. 2024, arXiv 2401.06121). It is 1 where they agree and may underflow where they do
not: for 600 questions it can be 1e-360, so its logarithm is computed in integers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from tasks.scoring.choice import geometric
from tasks.scoring.estimate import Estimate
from tasks.scoring.tables import Table, paired, values

SMALLEST_P = 1e-290
"""Below this, scipy's p-value may lose digits before it underflows."""


def ks_log10_p(n: int, h: int) -> float:
    """log10 of P(D >= h/n) for two samples of n values from one continuous distribution, for 1 <= h <= n.

    P = 2 (C(2n, n-h) - C(2n, n-2h) + C(2n, n-3h) - ...) / C(2n, n) (Gnedenko & Korolyuk 1951): the share of the walks
    of n steps up and n down that get h away from their start. Integers have any size, so nothing underflows.
    """
    outside = 2 * sum((-1) ** (k - 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1))
    return math.log10(outside) - math.log10(math.comb(2 * n, n))


def forget_quality(tables: Sequence[Table], retrained: Sequence[Table]) -> Estimate:
    """The p-value of scipy's `ks_2samp`; 0 where it underflows."""
    return _estimate(tables[0], retrained[0], logarithm=False)


def forget_quality_log10(tables: Sequence[Table], retrained: Sequence[Table]) -> Estimate:
    """log10 of the p-value, finite also where the p-value underflows."""
    return _estimate(tables[0], retrained[0], logarithm=True)


def _estimate(table: Table, retrained: Table, *, logarithm: bool) -> Estimate:
    pairs = paired(table, retrained, "retrained")
    if not pairs:
        return Estimate.null("no examples")
    n = len(pairs)
    model, anchor = (values("forget_quality", geometric, samples) for samples in zip(*pairs, strict=True))
    if not all(map(math.isfinite, [*model, *anchor])):
        return Estimate.null("a value is not finite", n)

    from scipy.stats import ks_2samp  # imported here: it costs a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns of a failure where the exact p-value underflows
        test = ks_2samp(model, anchor)
    p = float(test.pvalue)
    if not logarithm:
        return Estimate(p, None, n)
    return Estimate(math.log10(p) if p > SMALLEST_P else ks_log10_p(n, round(test.statistic * n)), None, n)
