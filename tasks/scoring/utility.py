"""TOFU's model utility: the harmonic mean of nine numbers about retained knowledge, 0 where one of them is 0.

Three question sets (retained facts, real authors, world facts) with a probability, a ROUGE and a truth ratio each
(Maini et al. 2024, arXiv 2401.06121). Seven tables are read: the probability and the truth ratio of real
authors and of world facts come from one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.scoring.choice import normalised_probability
from tasks.scoring.estimate import Estimate, mean
from tasks.scoring.headline import harmonic_mean
from tasks.scoring.probability import probability
from tasks.scoring.separation import Summarise
from tasks.scoring.tables import PerSample, Table, values


def model_utility(recall: PerSample, truth_ratio: PerSample) -> Summarise:
    """Model utility with a ROUGE and one of the two truth ratios, the latter as max(0, 1 - x) per question.

    Tables: retained answers (`logprob`), retained answers generated, retained answers paraphrased (`choice`), then
    real authors and world facts, each `choice` and generated.
    """
    choice_metrics = (("normalised_probability", normalised_probability), ("truth_ratio", truth_ratio))
    text_metrics = (("rougeL_recall", recall),)
    reads = (
        (("probability", probability),),
        text_metrics,
        choice_metrics[1:],
        choice_metrics,
        text_metrics,
        choice_metrics,
        text_metrics,
    )

    def summary(tables: Sequence[Table], _: Sequence[Table]) -> Estimate:
        return harmonic_mean(
            *(
                mean(values(name, compute, table))
                for table, metrics in zip(tables, reads, strict=True)
                for name, compute in metrics
            )
        )

    return summary
