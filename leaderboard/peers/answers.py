"""Converts a log of open-unlearning to samples, by probe.

An average loss becomes a sample of one token with that loss; perturbed answers become choices of one token each; a
generated text is kept unchanged. A score whose inputs are not in the log becomes a scalar under the metric's name.
Examples are joined by their index, and one that could not be scored (a null row) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaderboard.peers.logs import Log
from tasks.task import Sample

SIDES = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
"""TOFU's tables: our name by their prefix."""

LIKELY = {f"{side}_Q_A_Prob": f"{name}_qa" for side, name in SIDES.items()} | {
    f"{side}_Q_A_PARA_Prob": f"{side}_reworded" for side in ("forget", "retain")
}
"""Metrics with one answer per example, and the answer's probe."""

PERTURBED = {f"{side}_Q_A_PERT_Prob": f"{name}_perturbed" for side, name in SIDES.items()}
"""Metrics with several wrong answers per example."""

CHOICES = {
    "forget": ("forget_paraphrase", "forget_Q_A_PARA_Prob"),
    "retain": ("retain_paraphrase", "retain_Q_A_PARA_Prob"),
    "ra": ("real_authors_choice", "ra_Q_A_Prob"),  # no paraphrase: the original answer is used
    "wf": ("world_facts_choice", "wf_Q_A_Prob"),
}
"""Multiple-choice probe, and the metric that has the right answer."""

AGAIN = {
    "ra": ("real_authors_paraphrase", "ra_Q_A_PARA_Prob"),
    "wf": ("world_facts_paraphrase", "wf_Q_A_PARA_Prob"),
}
"""The same, where a log has the original answer's loss twice: TOFU's own code computes it again, in smaller batches and
in bfloat16, for the truth ratio."""

GENERATED = {
    "forget_Q_A_ROUGE": "forget_qa_generated",
    "retain_Q_A_ROUGE": "retain_qa_generated",
    "ra_Q_A_ROUGE": "real_authors_generated",
    "wf_Q_A_ROUGE": "world_facts_generated",
    "forget_verbmem_ROUGE": "forget_verbatim",
    "forget_knowmem_ROUGE": "forget_knowledge",
    "retain_knowmem_ROUGE": "retain_knowledge",
}
"""Metrics with generated texts."""

MEMORIZATION = ("exact_memorization", "extraction_strength")
MEMBERSHIP = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference")

Samples = Mapping[str, Sequence[Sample]]
"""Samples by probe."""


def samples_of(log: Log) -> Samples:
    """The samples of all metrics of a log that are known here, but for wrong answers one by one (`perturbed`).

    Raises:
        TaskError: rows are missing or malformed, or two metrics of the same examples have different indices.
    """
    for side in SIDES:
        log.check_aligned([f"{side}_Q_A_{kind}" for kind in ("Prob", "PARA_Prob", "PERT_Prob", "ROUGE")])
    found: dict[str, list[Sample]] = {}
    for metric, probe in LIKELY.items():
        if metric in log.metrics:
            found[probe] = _likely(log.rows(metric, "avg_loss", float))
    for metric in PERTURBED:
        log.rows(metric, "avg_loss", tuple)
    for side, (probe, right) in (*CHOICES.items(), *AGAIN.items()):
        wrong = f"{side}_Q_A_PERT_Prob"
        if {right, wrong} <= log.metrics.keys():
            found[probe] = _choices(log.rows(right, "avg_loss", float), log.rows(wrong, "avg_loss", tuple))
    for metric, probe in GENERATED.items():
        if metric in log.metrics:
            generated, references = (log.rows(metric, field, str) for field in ("generation", "ground_truth"))
            found[probe] = [
                Sample(i, references[i] or "", generated=answer)
                for i, answer in generated.items()
                if answer is not None
            ]
    found["forget_memorization"] = _scores(log, MEMORIZATION)
    for part in ("forget", "holdout"):
        found[f"{part}_membership"] = _scores(log, MEMBERSHIP, part)
    return {probe: samples for probe, samples in found.items() if samples}


def perturbed(log: Log) -> Samples:
    """A sample of each wrong answer. They would be most of a log's samples, and only a board reads them."""
    tables = {probe: log.rows(metric, "avg_loss", tuple) for metric, probe in PERTURBED.items()}
    return {
        probe: _likely({f"{i}.{j}": loss for i, row in rows.items() for j, loss in enumerate(row or ())})
        for probe, rows in tables.items()
        if any(rows.values())
    }


def _likely(losses: Mapping[str, float | None]) -> list[Sample]:
    return [Sample(i, "", token_logprobs=(-loss,)) for i, loss in losses.items() if loss is not None]


def _choices(right: Mapping[str, float | None], wrong: Mapping[str, tuple[float, ...] | None]) -> list[Sample]:
    found: list[Sample] = []
    for index, loss in right.items():
        others = wrong[index]
        if loss is not None and others is not None:
            logprobs = (-loss, *(-other for other in others))
            lengths = (1,) * len(logprobs)
            found.append(Sample(index, "", choice_logprobs=logprobs, choice_lengths=lengths, correct=0))
    return found


def _scores(log: Log, metrics: Sequence[str], part: str | None = None) -> list[Sample]:
    columns = {metric: log.rows(metric, "score", float, part) for metric in metrics if metric in log.metrics}
    log.check_aligned(list(columns), part)
    found: list[Sample] = []
    for index in next(iter(columns.values()), {}):
        scores = {metric: score for metric, rows in columns.items() if (score := rows[index]) is not None}
        loss = scores.pop("mia_loss", None)  # an average loss
        logprobs = None if loss is None else (-loss,)
        found.append(Sample(index, "", token_logprobs=logprobs, scalars=tuple(scores.items())))
    return found
