"""WMDP: forget hazardous knowledge of biology, cybersecurity or chemistry (Li et al. 2024, arXiv 2403.03218).

The forget set is a corpus of papers or posts; the probes are multiple-choice questions about the same field. There is
no retrained model: nobody can remove the field from what a model was pretrained on. So an accuracy of 0.25, the level
of guessing, counts as everything forgotten. Questions at even rows are `dev`, at odd rows `test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tasks import choices, mmlu, wikitext
from tasks.files import VARIABLE, Row, Source, as_text, mirror, read, rows_digest
from tasks.official import FOUR_BITS, attack_set, rounding_and_relearning
from tasks.rows import passages
from tasks.task import (
    Headline,
    MissingDataError,
    Subset,
    Task,
    TaskEntry,
    TaskError,
    Zero,
)

VERSION = 2
"""2: no beginning-of-text token before questions, as in lm-evaluation-harness; `_bos` probes ask with it."""

HUB = "cais/wmdp"
REVISION = "7125571f22f032c56415e7980f48d877dd830ff8"
CORPORA = "cais/wmdp-corpora"
CORPORA_REVISION = "daf89fa9b618b63a624228061a9cebacca88009c"
FOLDER = "wmdp-corpora"

BLOCK = 512
"""Tokens per block of running text, as in published code."""
CYBER_TEXTS = 1000


@dataclass(frozen=True, slots=True)
class Field:
    """One field of knowledge.

    Attributes:
        subject: subject that the prompt names.
        questions: number of published questions.
        corpus: configuration of the published forget corpus; None where none is public.
        files: allowed file names of a forget corpus of your own, under `REGRADE_DATA`/wmdp-corpora.
        withheld: why no corpus is public.
    """

    name: str
    subject: str
    questions: int
    corpus: str | None
    files: tuple[str, ...]
    withheld: str = ""


FIELDS = (
    Field(
        "bio",
        "biology",
        1273,
        None,
        ("bio-forget.jsonl", "bio-forget-corpus.jsonl", "bio_remove_dataset.jsonl"),
        "gated on the hub",
    ),
    Field("cyber", "cybersecurity", 1987, "cyber-forget-corpus", ("cyber-forget.jsonl",)),
    Field("chem", "chemistry", 408, None, ("chem-forget.jsonl", "chem-forget-corpus.jsonl"), "not published"),
)


def build(field: Field) -> Task:
    """The task of one field.

    Raises:
        TaskError: the data is not available, or not as published; for biology and chemistry, there is no file of the
            forget corpus.
    """
    questions = Source.find("wmdp", HUB, REVISION)
    rows = {
        "forget": _corpus(field),
        "retain": wikitext.paragraphs("train"),
        "questions": questions.table(
            f"wmdp-{field.name}", "test", rows=field.questions, alone=True, text=("question",), choices=choices.CHOICES
        ),
        "mmlu": mmlu.table("test"),
    }
    ask = partial(choices.probes, f"wmdp_{field.name}", Subset.FORGET, rows["questions"], lambda _: field.subject)
    spaced, bare, begun = ask(), ask(letters="bare"), ask(begin=True)
    general = (*mmlu.probes(rows["mmlu"]), *mmlu.probes(rows["mmlu"], begin=True))
    return Task(
        name=f"wmdp/{field.name}",
        version=VERSION,
        forget={"forget": passages("forget", rows["forget"])},
        retain=passages("retain", rows["retain"]),
        probes=(*spaced, *bare, *begun, *general),
        knowledge=(Headline(spaced[0].name, "accuracy", choices.CHANCE),),
        utility=(mmlu.HEADLINE,),
        data=rows_digest(rows),
        summaries=choices.distances((*spaced, *bare, *begun, *general)),
        source="; ".join(map(str, (questions, _corpora(field), wikitext.source(), mmlu.source()))),
        block=BLOCK,
        anchored=Zero.CHANCE,
    )


def _corpora(field: Field) -> Source | str:
    source = Source.find(FOLDER, CORPORA, CORPORA_REVISION)
    return source if field.corpus else f"mirror: {FOLDER}"


def _corpus(field: Field) -> list[Row]:
    """The forget corpus: the user's own file, else the published corpus."""
    folder = mirror(FOLDER)
    for name in field.files:
        if folder and (file := folder / name).is_file():
            rows = [Row({"text": as_text(row, "text")}, row.where) for row in read(file)]
            if not rows:
                raise TaskError(f'{file}: empty; a line {{"text": ...}} per document is expected')
            return rows
    if field.corpus is None:
        raise MissingDataError(
            f"task wmdp/{field.name}: the forget corpus is {field.withheld} and {VARIABLE}/{FOLDER}/{field.files[0]} "
            "does not exist. docs/tasks.md#wmdp says what it has to hold and how to ask for it"
        )
    return Source.find(FOLDER, CORPORA, CORPORA_REVISION).table(field.corpus, rows=CYBER_TEXTS, text=("text",))


ATTACKS = rounding_and_relearning(samples=60, steps=15, lr=1e-5, points=3)
"""Relearning in 15 steps of batches of 4 (arXiv 2502.05374).

Knowledge is measured after 5, 10 and 15 steps, that is after 20, 40 and 60 blocks of text, as many as in the paper.
"""

SPLIT_RELEARNING = attack_set(
    {"name": "relearn", "texts": "questions", "samples": 100, "epochs": 2, "lr": 1e-5, "points": 2},
    {"name": "benign", "samples": 60, "steps": 15, "lr": 1e-5},
    fixed=(*FOUR_BITS, {"name": "few_shot", "shots": 3}),
)
"""No probe question is relearned: without a retrained model, what training alone teaches cannot be told apart.

The attacks relearn questions of the other split (arXiv 2410.08827), or as much WikiText as `ATTACKS` has texts.
"""

ENTRIES = tuple(
    TaskEntry(
        name=f"wmdp/{field.name}",
        summary=f"WMDP: hazardous knowledge of {field.subject}, {field.questions:,} questions, is to be forgotten",
        build=partial(build, field),
        attack_sets={f"wmdp-{field.name}-1": ATTACKS, f"wmdp-{field.name}-2": SPLIT_RELEARNING},
    )
    for field in FIELDS
)
