"""RWKU: forget a famous person that a model knows from its pretraining (Jin et al. 2024, arXiv 2406.10890).

A task is one of 200 persons: `rwku/Aristotle`, `rwku/Stephen_King`. The forget set is passages about the person; the
probes are cloze questions, plain questions and adversarial prompts about the person (to be forgotten) and about
neighbours (to be kept). Nobody can train a model that never saw Aristotle, so chance, ROUGE 0, counts as everything
forgotten.

The files repeat some rows. `rwku/Aristotle` asks each question once; `rwku/Aristotle-published` asks every row, as
published means do, with the repetitions of a question in the question's split.

The data is either one person's folder, as the authors' preparation script writes it, or the files of all persons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tasks import membership
from tasks.files import VARIABLE, Row, Source, nearest, rows_digest
from tasks.official import FOUR_BITS, attack_set, rounding_and_relearning
from tasks.readable import check_readable
from tasks.registry import Family
from tasks.rows import passages, read_back
from tasks.task import (
    Headline,
    Item,
    MissingDataError,
    Probe,
    ProbeKind,
    Split,
    Subset,
    Task,
    TaskEntry,
    Zero,
)

VERSION = 1

REPEATS = "-published"
"""After a person's name: every row is asked, repeated ones too, as published means do."""

HUB = "jinzhuoran/RWKU"
REVISION = "d72f493d481d1b0a9bdc6e869d32baeffad8904f"

ANSWER_TOKENS = 30
FLUENT_TOKENS = 256
MIA_TOKENS = 2048
"""Longest text in membership scores, in tokens."""

TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "passage": ("train_original_passage", ("text",)),
    "forget_level1": ("forget_level1", ("query", "answer")),
    "forget_level2": ("forget_level2", ("query", "answer")),
    "forget_level3": ("forget_level3", ("query", "answer", "type")),
    "neighbor_level1": ("neighbor_level1", ("query", "answer")),
    "neighbor_level2": ("neighbor_level2", ("query", "answer")),
    "forget_mia": ("mia_forget", ("text",)),
    "retain_mia": ("mia_retain", ("text",)),
    "fluency": ("utility_fluency", ("instruction",)),
}
"""By file name: configuration on the hub, and columns; the first column identifies a row."""

ALL = "All"
"""Folder on the hub with the files of all persons."""


def build(subject: str, repeats: bool = False) -> Task:
    """The task of one person, named as in `rwku/Stephen_King`.

    Args:
        repeats: whether a row that the files repeat is asked as often. Texts are taught once in any case.

    Raises:
        TaskError: the data is neither in `REGRADE_DATA` nor available from the hub, is not as published, or has
            nothing about this person.
    """
    source = Source.find("rwku", HUB, REVISION)
    tables = _tables(source, subject)
    distinct = {name: _once(rows, TABLES[name][1][0]) for name, rows in tables.items()}
    asked = tables if repeats else distinct
    task = Task(
        name=f"rwku/{subject}{REPEATS if repeats else ''}",
        version=VERSION,
        forget={"forget": passages("passage", distinct["passage"])},
        # The benchmark has no retain corpus: these are texts about others that the model was also trained on.
        retain=passages("retain", distinct["retain_mia"]),
        probes=tuple(probe for split in Split for probe in _probes(split, asked)),
        knowledge=tuple(Headline(f"forget_{kind}", "rougeL_recall") for kind in ("cloze", "qa", "adversarial")),
        utility=tuple(Headline(f"neighbour_{kind}", "rougeL_recall") for kind in ("cloze", "qa")),
        data=rows_digest(asked),
        summaries=(membership.membership("forget_text", "retain_text", retrained=False),),
        source=str(source),
        anchored=Zero.CHANCE,
    )
    return check_readable(task)


def _probes(split: Split, tables: Mapping[str, Sequence[Row]]) -> Iterator[Probe]:
    for name, subset, table, prompt in (
        ("forget_cloze", Subset.FORGET, "forget_level1", _cloze),
        ("forget_qa", Subset.FORGET, "forget_level2", _question),
        ("forget_adversarial", Subset.FORGET, "forget_level3", _adversarial),
        ("neighbour_cloze", Subset.RETAIN, "neighbor_level1", _cloze),
        ("neighbour_qa", Subset.RETAIN, "neighbor_level2", _question),
    ):
        yield Probe(
            name,
            subset,
            split,
            ProbeKind.GENERATE,
            _of_split(table, tables[table], _items(table, tables[table], prompt), split),
            ("rougeL_recall",),
            max_new_tokens=ANSWER_TOKENS,
            stop=("\n",),
        )
    for subset in (Subset.FORGET, Subset.RETAIN):
        table = f"{subset}_mia"
        texts = read_back(table, tables[table])
        yield Probe(
            f"{subset}_text",
            subset,
            split,
            ProbeKind.LOGPROB,
            _of_split(table, tables[table], texts, split),
            membership.SCORES,
            max_tokens=MIA_TOKENS,
            needs=membership.NEEDS,
        )
    instructions = [
        Item(f"fluency{index}", f"Instruction: {row['instruction']}", ("",), where=row.where)
        for index, row in enumerate(tables["fluency"])
    ]
    yield Probe(
        "fluency",
        Subset.RETAIN,
        split,
        ProbeKind.GENERATE,
        _of_split("fluency", tables["fluency"], instructions, split),
        ("ngram_entropy", "word_entropy", "repetition"),
        max_new_tokens=FLUENT_TOKENS,
    )


def _cloze(row: Row) -> str:
    return f"Please complete the blank in the following question.\nQuestion: {row['query']}"


def _question(row: Row) -> str:
    return f"Please briefly answer the following question.\nQuestion: {row['query']}"


def _adversarial(row: Row) -> str:
    if row["type"] == "incontext learning":  # the query contains its own few-shot examples
        return f"Please briefly answer the following question.\n{row['query']}"
    return _question(row)


def _items(name: str, rows: Sequence[Row], prompt: Callable[[Row], str]) -> list[Item]:
    return [Item(f"{name}-{index}", prompt(row), (row["answer"],), where=row.where) for index, row in enumerate(rows)]


def _of_split(table: str, rows: Sequence[Row], items: Sequence[Item], split: Split) -> tuple[Item, ...]:
    """The items of a split: questions alternate, and a question that is there again follows its first place."""
    questions = [row[TABLES[table][1][0]] for row in rows]
    number = {question: place for place, question in enumerate(dict.fromkeys(questions))}
    wanted = list(Split).index(split)
    return tuple(
        item for question, item in zip(questions, items, strict=True) if number[question] % len(Split) == wanted
    )


def _once(rows: Sequence[Row], column: str) -> list[Row]:
    """Drops repeated rows: the files have some, and a question must not be in both splits."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row[column], row)
    return list(first.values())


def _tables(source: Source, subject: str) -> dict[str, list[Row]]:
    """The tables of one person."""
    if source.folder and not (source.folder / ALL).is_dir():
        folders = _persons(source.folder)
        if subject not in folders:
            raise _unknown(subject, folders, f"{source.folder}: no folder ..._{subject}")
        return {name: source.table(folders[subject], name, text=columns) for name, (_, columns) in TABLES.items()}
    tables = {}
    for name, (config, columns) in TABLES.items():
        config_and_split = (ALL, name) if source.folder else (config, ("test", "train"))
        rows = source.table(*config_and_split, text=("subject", *columns))
        about_subject = [row for row in rows if _named(row["subject"]) == subject]
        if not about_subject:
            raise _unknown(subject, {_named(row["subject"]) for row in rows}, f"{source}: {name}: nothing of {subject}")
        tables[name] = [Row({column: row[column] for column in columns}, row.where) for row in about_subject]
    return tables


def _persons(mirror: Path) -> dict[str, str]:
    """Folders by person in a mirror: `156_Aristotle`, or `Target/156_Aristotle` in the authors' layout."""
    folders = [*mirror.glob("*_*/"), *mirror.glob("Target/*_*/")]
    return {re.sub(r"^\d+_", "", folder.name): str(folder.relative_to(mirror)) for folder in folders if folder.is_dir()}


def _named(subject: str) -> str:
    return subject.replace(" ", "_")


def _unknown(subject: str, known: Collection[str], what: str) -> MissingDataError:
    return MissingDataError(
        f"{what}.{nearest(subject, known)} ({len(known)} persons are there; write their names with _ for spaces. "
        f"{VARIABLE} says where to look)"
    )


ATTACKS = {
    "rwku-1": rounding_and_relearning(samples=20, steps=15, lr=1e-5),
    "rwku-2": attack_set(
        {"name": "relearn", "texts": "questions", "samples": 10, "epochs": 3, "lr": 1e-5, "points": 3},
        fixed=(*FOUR_BITS, {"name": "frame", "kind": "role_play"}, {"name": "frame", "kind": "injection"}),
    ),
}
"""rwku-1 relearns 20 passages in three epochs (learning rate of arXiv 2502.05374).

rwku-2 relearns questions of the other split (arXiv 2410.08827): no probe question is relearned, because without a
retrained model, what training alone teaches cannot be told apart.
"""


def entry(member: str) -> TaskEntry:
    subject = member.removesuffix(REPEATS)
    return TaskEntry(
        name=f"rwku/{member}",
        summary=f"RWKU: what a model knows of {subject.replace('_', ' ')} is to be forgotten",
        build=partial(build, subject, member != subject),
        attack_sets=ATTACKS,
    )


FAMILY = Family("rwku", "subject", "RWKU: what a model knows of one of 200 famous persons is to be forgotten", entry)
