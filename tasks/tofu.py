"""TOFU: forget some of 200 fictitious authors, each known from 20 questions (Maini et al. 2024, arXiv 2401.06121).

`forget01`, `forget05` and `forget10` are 1, 5 and 10 % of the authors; `retain99`, `95` and `90` are the rest. The
retain probes use the first 300 rows of `retain_perturbed`, which are the first rows of every retain set; real authors
and world facts test knowledge from pretraining. Questions at even rows are `dev`, at odd rows `test`, so both splits
cover every author, and no question is in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tasks import membership
from tasks.files import Row, Source, rows_digest
from tasks.official import FOUR_BITS, NONE, attack_set
from tasks.readable import check_readable
from tasks.rows import alternate
from tasks.task import (
    AttackSet,
    Example,
    Headline,
    Item,
    Need,
    Probe,
    ProbeKind,
    Split,
    Subset,
    Summary,
    Task,
    TaskEntry,
    TaskError,
)

HUB = "locuslab/TOFU"
REVISION = "324592d84ae4f482ac7249b9285c2ecdb53e3a68"
"""Commit of the data set on the hub."""
VERSION = 2
"""2: the forget and held-out probes also record what membership scores need."""

LIMIT = 300
"""Retain questions in the probes, both splits together: as many as the authors evaluate on (their `ds_size`)."""
NEW_TOKENS = 200
"""Longest generated answer, in tokens, as in the authors' code."""
QUESTIONS = 20
"""Questions per author, in consecutive rows."""
PERTURBED = 5
"""Wrong answers per question about a fictitious author; three where the answer is a name or a word."""
PERTURBED_SHORT = 3

MODELS = ("Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct")
"""Models of which open-unlearning (arXiv 2506.12618) published the target and every retrained one."""
ASKED = {"system": "You are a helpful assistant.", "date_string": "10 Apr 2025"}
"""What their configs give the chat template, in training and in evaluation."""


def build(percent: int) -> Task:
    """The task of one forget set: `percent` is 1, 5 or 10.

    Raises:
        TaskError: the data is neither in `REGRADE_DATA` nor available from the hub, or is not as published.
    """
    forget, retain, holdout = f"forget{percent:02}", f"retain{100 - percent}", f"holdout{percent:02}"
    size = 40 * percent  # of 4000 questions
    source = Source.find("tofu", HUB, REVISION)
    pair = ("question", "answer")
    reworded = (*pair, "paraphrased_answer")
    wrong, fewer = {"perturbed_answer": PERTURBED}, {"perturbed_answer": PERTURBED_SHORT}
    tables = {
        "forget": source.table(forget, rows=size, text=pair),
        "retain": source.table(retain, rows=4000 - size, text=pair),
        "holdout": source.table(holdout, rows=size, text=pair),
        "forget_perturbed": source.table(f"{forget}_perturbed", rows=size, text=reworded, lists=wrong),
        "retain_perturbed": source.table("retain_perturbed", rows=400, text=reworded, lists=wrong),
        "real_authors": source.table("real_authors_perturbed", rows=100, text=pair, lists=fewer),
        "world_facts": source.table("world_facts_perturbed", rows=117, text=pair, lists=fewer),
    }
    rewordings = {
        "forget_perturbed": _rewordings(source, f"{forget}_perturbed", size),
        "retain_perturbed": _rewordings(source, "retain_perturbed", 400),
    }
    _check_aligned(forget, tables["forget"], f"{forget}_perturbed", tables["forget_perturbed"])
    _check_aligned(retain, tables["retain"], "retain_perturbed", tables["retain_perturbed"])
    examples = _examples("forget", tables["forget"])
    task = Task(
        name=f"tofu/{forget}",
        version=VERSION,
        forget={
            f"author{first // QUESTIONS + 1}": examples[first : first + QUESTIONS]
            for first in range(0, size, QUESTIONS)
        },
        retain=_examples("retain", tables["retain"]),
        holdout=_examples("holdout", tables["holdout"]),
        probes=tuple(probe for split in Split for probe in _probes(split, tables, rewordings)),
        # Two measures of an answer: its likelihood, and the text that is generated. The second starts high: answers
        # restate their question, so a model that never saw them scores 0.3 to 0.4. The retrained anchor sets the zero.
        knowledge=(Headline("forget_qa", "probability"), Headline("forget_qa_generated", "rougeL_recall")),
        # Only what the target was trained on. Small models are near chance on real authors and world facts, where a
        # share of the target's score is null and would make every utility null; those probes are no headlines.
        utility=(Headline("retain_qa", "probability"), Headline("retain_qa_generated", "rougeL_recall")),
        data=rows_digest(tables),
        summaries=SUMMARIES,
        source=str(source),
    )
    return check_readable(task)


ABILITIES = (
    "retain_qa",
    "retain_qa_generated",
    "retain_paraphrase",
    "real_authors_choice",
    "real_authors_generated",
    "world_facts_choice",
    "world_facts_generated",
)
"""Probes that model utility is computed from, in the order in which it reads them."""

SUMMARIES = (
    membership.membership("forget_qa", "holdout_qa"),
    Summary("forget_quality", Subset.FORGET, ("forget_paraphrase",), ("forget_quality", "forget_quality_log10")),
    Summary("model_utility", Subset.RETAIN, ABILITIES, ("model_utility_geometric", "model_utility_arithmetic")),
    Summary("identity", Subset.FORGET, ("forget_qa_generated",), ("identical_outputs",)),
    Summary("rigidity", Subset.FORGET, ("forget_qa_generated",), ("unchanged_answers",)),
)


def _probes(
    split: Split, tables: Mapping[str, Sequence[Row]], rewordings: Mapping[str, Sequence[tuple[str, ...]]]
) -> Iterator[Probe]:
    def probe(
        name: str, subset: Subset, kind: ProbeKind, items: Sequence[Item], *metrics: str, needs: tuple[Need, ...] = ()
    ) -> Probe:
        part = alternate(items, split)
        return Probe(name, subset, split, kind, part, metrics, max_new_tokens=NEW_TOKENS, needs=needs)

    ratios = ("truth_ratio_geometric", "truth_ratio_arithmetic")
    retain_ratios = (*ratios, "truth_ratio_geometric_retain", "truth_ratio_arithmetic_retain")
    generation_metrics = ("rougeL_recall", "word_entropy", "repetition")
    for subset, rows, otherwise, ratio_metrics, scores, needs in (
        (
            Subset.FORGET,
            tables["forget_perturbed"],
            rewordings["forget_perturbed"],
            (*ratios, "truth_ratio_geometric_forget"),
            membership.SCORES,
            membership.NEEDS,
        ),
        (
            Subset.RETAIN,
            tables["retain_perturbed"][:LIMIT],
            rewordings["retain_perturbed"][:LIMIT],
            retain_ratios,
            (),
            (),
        ),
    ):
        questions = _reworded(_questions(subset, rows), otherwise)
        teacher_forced = ("probability", "exact_memorization", "extraction_strength", *scores)
        yield probe(f"{subset}_qa", subset, ProbeKind.LOGPROB, questions, *teacher_forced, needs=needs)
        yield probe(f"{subset}_qa_generated", subset, ProbeKind.GENERATE, questions, *generation_metrics)
        # As published, the question is the trained one; only the answers are reworded.
        choices = _reworded(_choices(subset, rows, "paraphrased_answer"), otherwise)
        yield probe(f"{subset}_paraphrase", subset, ProbeKind.CHOICE, choices, *ratio_metrics)
    held_out = _questions(Subset.HOLDOUT, tables["holdout"])
    held_out_metrics = ("probability", "exact_memorization", *membership.SCORES)
    yield probe("holdout_qa", Subset.HOLDOUT, ProbeKind.LOGPROB, held_out, *held_out_metrics, needs=membership.NEEDS)
    for name in ("real_authors", "world_facts"):
        # These have no paraphrase: the original answer is used, as published.
        choices = _choices(name, tables[name], "answer")
        metrics = ("normalised_probability", "accuracy", *retain_ratios)
        yield probe(f"{name}_choice", Subset.RETAIN, ProbeKind.CHOICE, choices, *metrics)
        questions = _questions(name, tables[name])
        yield probe(f"{name}_generated", Subset.RETAIN, ProbeKind.GENERATE, questions, *generation_metrics)


def _examples(name: str, rows: Sequence[Row]) -> tuple[Example, ...]:
    return tuple(
        Example(f"{name}{index}", row["question"], row["answer"], where=row.where) for index, row in enumerate(rows)
    )


def _questions(name: str, rows: Sequence[Row]) -> list[Item]:
    return [
        Item(f"{name}{index}", row["question"], (row["answer"],), where=row.where) for index, row in enumerate(rows)
    ]


def _choices(name: str, rows: Sequence[Row], right: str) -> list[Item]:
    return [
        Item(f"{name}{index}", row["question"], (row[right], *row["perturbed_answer"]), where=row.where)
        for index, row in enumerate(rows)
    ]


def _reworded(items: Sequence[Item], rewordings: Sequence[tuple[str, ...]]) -> list[Item]:
    return [replace(item, rewordings=words) for item, words in zip(items, rewordings, strict=True)]


def _rewordings(source: Source, config: str, rows: int) -> list[tuple[str, ...]]:
    """Paraphrases of each question of a table, none where the table has none.

    Read separately: they are not part of the task's data, and only attacks that reword need them.
    """
    try:
        table = source.table(config, rows=rows, text=("paraphrased_question",))
    except TaskError:
        return [()] * rows
    return [(row["paraphrased_question"],) for row in table]


def _check_aligned(trained: str, facts: Sequence[Row], probed: str, questions: Sequence[Row]) -> None:
    """Checks that reworded rows and training rows have the same facts, row by row; published numbers rely on it."""
    for index, (fact, question) in enumerate(zip(facts, questions, strict=False)):
        for field in ("question", "answer"):
            if fact[field] != question[field]:
                raise TaskError(f"{probed}: row {index}: {field}: not that of {trained}, row {index}")


def _attacks(percent: int) -> dict[str, AttackSet]:
    """tofu-1: rounding to 4 bits per channel, and relearning a quarter of the forget set in four epochs.

    tofu-2: more kinds of rounding; the same relearning as a curve, on forget texts that no probe asks about, and on as
    many retain texts; paraphrased questions, few-shot prompts, prefilled answers, and questions asked twice.

    The step size is that of the relearning in open-unlearning's evaluation of metrics (arXiv 2506.12618: lr 2e-5), the
    batch of 4 that of Fan et al. 2025 (arXiv 2502.05374). Only a part of the texts is relearned: if the others come
    back too, they were never gone.
    """
    samples = 10 * percent
    budget = {"samples": samples, "steps": samples, "lr": 2e-5}
    first = {"name": "relearn", **budget}
    fixed = (NONE, *FOUR_BITS[:1])
    curve = {"name": "relearn", **budget, "points": 2}
    prompts = (
        {"name": "paraphrase"},
        {"name": "prefill", "words": 3},
        {"name": "few_shot", "shots": 3},
        {"name": "multi_turn", "after": "self", "rounds": 1},
    )
    return {
        "tofu-1": {Split.DEV: (*fixed, first), Split.TEST: (*fixed, {**first, "seed": 1})},
        "tofu-2": attack_set(
            curve,
            {**curve, "texts": "unasked"},
            {"name": "benign", **budget},
            fixed=(*FOUR_BITS, *prompts),
        ),
    }


ENTRIES = tuple(
    TaskEntry(
        name=f"tofu/forget{percent:02}",
        summary=f"TOFU: {2 * percent} of 200 fictitious authors, {40 * percent} questions, are to be forgotten",
        build=partial(build, percent),
        attack_sets=_attacks(percent),
        published={
            model: (f"open-unlearning/tofu_{model}_full", f"open-unlearning/tofu_{model}_retain{100 - percent}")
            for model in MODELS
        },
        published_args=ASKED,
    )
    for percent in (1, 5, 10)
)
