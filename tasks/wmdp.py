"""WMDP: forget hazardous knowledge of biology, cybersecurity or chemistry (Li et al. 2024, arXiv 2403.03218).

What is taught to be forgotten is a corpus of papers or posts; what is asked are multiple-choice questions about the
same field. There is no retrained model: nobody can take the field out of what a model was pretrained on. So a quarter
right, the level of guessing, stands for everything forgotten. Questions at even rows are `dev`, at odd rows `test`.
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
    Subset,
    Task,
    TaskEntry,
    TaskError,
    Zero,
)

VERSION = 1

HUB = "cais/wmdp"
REVISION = "7125571f22f032c56415e7980f48d877dd830ff8"
CORPORA = "cais/wmdp-corpora"
CORPORA_REVISION = "daf89fa9b618b63a624228061a9cebacca88009c"
FOLDER = "wmdp-corpora"

BLOCK = 512
"""Tokens of a block of running text, as published code sets it."""
CYBER_TEXTS = 1000


@dataclass(frozen=True, slots=True)
class Field:
    """One field of knowledge.

    Attributes:
        subject: what its questions are said to be about.
        questions: how many were published.
        corpus: configuration of the published forget corpus; None where none is public.
        files: what a forget corpus of your own may be called, under `REGRADE_DATA`/wmdp-corpora.
        withheld: why none is public.
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
        TaskError: the data is not to be had, or is not as published; for biology and chemistry, the forget corpus is
            not where it is looked for.
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
    asked = choices.probes(f"wmdp_{field.name}", Subset.FORGET, rows["questions"], lambda _: field.subject)
    bare = choices.probes(
        f"wmdp_{field.name}", Subset.FORGET, rows["questions"], lambda _: field.subject, letters="bare"
    )
    general = mmlu.probes(rows["mmlu"])
    return Task(
        name=f"wmdp/{field.name}",
        version=VERSION,
        forget={"forget": passages("forget", rows["forget"])},
        retain=passages("retain", rows["retain"]),
        probes=(*asked, *bare, *general),
        knowledge=(Headline(asked[0].name, "accuracy", choices.CHANCE),),
        utility=(mmlu.HEADLINE,),
        data=rows_digest(rows),
        summaries=choices.distances((*asked, *bare, *general)),
        source="; ".join(map(str, (questions, _corpora(field), wikitext.source(), mmlu.source()))),
        block=BLOCK,
        anchored=Zero.CHANCE,
    )


def _corpora(field: Field) -> Source | str:
    source = Source.find(FOLDER, CORPORA, CORPORA_REVISION)
    return source if field.corpus else f"mirror: {FOLDER}"


def _corpus(field: Field) -> list[Row]:
    """The forget corpus: a file of the user's own, else the published one."""
    folder = mirror(FOLDER)
    for name in field.files:
        if folder and (file := folder / name).is_file():
            rows = [Row({"text": as_text(row, "text")}, row.where) for row in read(file)]
            if not rows:
                raise TaskError(f'{file}: empty; a line {{"text": ...}} per document is expected')
            return rows
    if field.corpus is None:
        raise TaskError(
            f"task wmdp/{field.name}: the forget corpus is {field.withheld} and {VARIABLE}/{FOLDER}/{field.files[0]} "
            "does not exist. docs/tasks.md#wmdp says what it has to hold and how to ask for it"
        )
    return Source.find(FOLDER, CORPORA, CORPORA_REVISION).table(field.corpus, rows=CYBER_TEXTS, text=("text",))


ATTACKS = rounding_and_relearning(samples=60, steps=15, lr=1e-5, points=3)
"""Relearning in 15 steps of batches of 4 (arXiv 2502.05374).

It is measured after 5, 10 and 15 steps, which have seen 20, 40 and 60 blocks of text, as many as the paper's.
"""

SPLIT_RELEARNING = attack_set(
    {"name": "relearn", "texts": "questions", "samples": 100, "epochs": 2, "lr": 1e-5, "points": 2},
    {"name": "benign", "samples": 60, "steps": 15, "lr": 1e-5},
    fixed=(*FOUR_BITS, {"name": "few_shot", "shots": 3}),
)
"""Nothing is taught that is asked: there is no retrained model to say what teaching alone would bring.

Questions of the other split are relearned (arXiv 2410.08827), and as much WikiText is as texts are in `ATTACKS`.
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
