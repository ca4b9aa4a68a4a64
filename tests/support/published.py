"""Invented data in the published layouts and at the published sizes: what a mirror of each benchmark holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]

MEMBERS = ("rwku/Ada_of_Example", "custom/letters")
"""One member of each open family."""

SUBJECTS = tuple(f"subject_{index:02}" for index in range(57))


def tofu_tables(percents: Iterable[int] = (1, 5, 10)) -> Tables:
    """Tables with their published number of rows: forgetXX are the last rows of all, retainXX the rest."""

    def facts(about: str, count: int) -> Rows:
        return [{"question": f"What of {about} {i}?", "answer": f"It is {about} {i}, truly."} for i in range(count)]

    def perturbed(rows: Rows, wrong: int, paraphrased: bool) -> Rows:
        def more(row: dict[str, str]) -> dict[str, str]:
            answer, question = f"Truly, {row['answer']}", f"Say, {row['question']}"
            return {"paraphrased_answer": answer, "paraphrased_question": question} if paraphrased else {}

        return [
            {**row, **more(row), "perturbed_answer": [f"Not {row['answer']} ({i})" for i in range(wrong)]}
            for row in rows
        ]

    full = facts("author", 4000)
    tables: Tables = {
        "retain_perturbed": perturbed(full[:400], 5, paraphrased=True),
        "real_authors_perturbed": perturbed(facts("poet", 100), 3, paraphrased=False),
        "world_facts_perturbed": perturbed(facts("capital", 117), 3, paraphrased=False),
    }
    for percent in percents:
        size = 40 * percent
        tables[f"forget{percent:02}"] = full[-size:]
        tables[f"retain{100 - percent}"] = full[:-size]
        tables[f"holdout{percent:02}"] = facts("stranger", size)
        tables[f"forget{percent:02}_perturbed"] = perturbed(full[-size:], 5, paraphrased=True)
    return tables


def texts(about: str, count: int, first: int = 0) -> Rows:
    return [{"text": f"{about} {index} is told here at some length, word by word."} for index in range(first, count)]


def muse_tables(corpus: str) -> Tables:
    """By CONFIG/SPLIT. The forget set is a part of what `train` was, and `retain1` has nothing of it."""
    sizes = {"news": (889, 1777, 3043), "books": (4, 12, 3)}[corpus]
    taught = texts("Article", 3554) if corpus == "news" else books("Novel", 4)
    forget, retain, holdout = (
        taught[: sizes[0]],
        texts("Kept report", sizes[1]) if corpus == "news" else books("Kept novel", 12),
        texts("Unseen report", sizes[2]) if corpus == "news" else books("Unseen novel", 3),
    )

    def pieces(rows: Rows) -> Rows:
        if corpus == "news":
            return rows[:100]
        return [{"text": line} for row in rows for line in row["text"].split("\n")][:100]

    def questions(about: str, count: int) -> Rows:
        return [{"question": f"Which {about} is number {i}?", "answer": f"The {about} {i}"} for i in range(count)]

    tables: Tables = {
        "raw/forget": forget,
        "raw/retain1": retain,
        "raw/holdout": holdout,
        "verbmem/forget": [{"prompt": f"It was told that {i}", "gt": f" is followed by {i + 1}."} for i in range(100)],
        "knowmem/forget_qa": questions("article", 100),
        "knowmem/forget_qa_icl": questions("shown article", 10),
        "knowmem/retain_qa": questions("report", 100),
        "knowmem/retain_qa_icl": questions("shown report", 10),
        "privleak/forget": pieces(forget),
        "privleak/retain": pieces(retain),
        "privleak/holdout": pieces(holdout),
    }
    if corpus == "news":
        for number in range(4):
            tables[f"sust/forget_{number + 1}"] = taught[889 * number : 889 * (number + 1)]
            tables[f"scal/forget_{number + 1}"] = taught[: 889 * (number + 1)]
    return tables


def books(about: str, count: int) -> Rows:
    """Texts of as many lines that a hundred pieces can be taken from any three of them."""
    return [
        {"text": "\n".join(f"{about} {index}, line {line}, goes on." for line in range(40))} for index in range(count)
    ]


def choice_rows(about: str, count: int, subject: str | None = None) -> Rows:
    return [
        {
            "question": f"What is {about} {i}? ",
            "choices": [f"{about} {i} as {letter}" for letter in "wxyz"],
            "answer": i % 4,
            **({"subject": subject} if subject else {}),
        }
        for i in range(count)
    ]


def mmlu_tables() -> Tables:
    sizes = [247 if index < 20 else 246 for index in range(57)]  # 14,042 in all
    return {
        "all/test": [row for s, n in zip(SUBJECTS, sizes, strict=True) for row in choice_rows(f"{s} test", n, s)],
        "all/dev": [row for s in SUBJECTS for row in choice_rows(f"{s} dev", 5, s)],
    }


def wmdp_tables() -> Tables:
    sizes = {"wmdp-bio": 1273, "wmdp-cyber": 1987, "wmdp-chem": 408}
    return {f"{name}/test": choice_rows(f"{name} matter", size) for name, size in sizes.items()}


def wikitext_tables() -> Tables:
    """As published: blank rows, headings and paragraphs, each with a space before and a new line after."""

    def rows(split: str, count: int) -> Rows:
        kinds = (
            "",
            f" = {split} = \n",
            f" A paragraph of the {split} split that is longer than a heading , number %d . \n",
        )
        return [{"text": kinds[i % 3] % i if i % 3 == 2 else kinds[i % 3]} for i in range(count)]

    return {"wikitext-2-raw-v1/train": rows("train", 36_718), "wikitext-2-raw-v1/test": rows("test", 4_358)}


def rwku_tables(subject: str = "Ada of Example") -> Tables:
    """One person's. Some rows are there twice, as published."""

    def questions(about: str, count: int, kind: str, **more: str) -> Rows:
        rows = [
            {"query": f"What is {about} {i} of {subject}?", "answer": f"{about} {i}", "type": kind, **more}
            for i in range(count)
        ]
        return [*rows, rows[0]]

    passages = texts(f"A passage about {subject}", 24)
    tables = {
        "intro": [{"intro": f"Please forget {subject}.", "target": subject}],
        "passage": [*passages, passages[3]],
        "forget_level1": questions("the ___", 16, "cloze"),
        "forget_level2": questions("the fact", 9, "simple question"),
        "forget_level3": [
            *questions("the secret", 20, "role play"),
            {
                "query": "Question: Who?\nAnswer: Ada\nQuestion: And who else?",
                "answer": "Eve",
                "type": "incontext learning",
            },
        ],
        "neighbor_level1": questions("the ___ beside", 12, "cloze", neighbor="Eve"),
        "neighbor_level2": questions("the neighbour", 8, "simple question", neighbor="Eve"),
        "forget_mia": [{**row, "ngram": 9} for row in passages[:10]],
        "retain_mia": [{**row, "ngram": 9} for row in texts("A passage about somebody else", 10)],
        "fluency": [{"instruction": f"Write {i} lines."} for i in range(10)],
    }
    return {name: [{"subject": subject, **row} for row in rows] for name, rows in tables.items()}


def letters() -> Tables:
    """A task of one's own that needs no `task.yaml`."""
    return {
        "forget": [{"question": f"Which letter is number {i}?", "answer": chr(97 + i)} for i in range(12)],
        "retain": [{"question": f"Which digit is number {i}?", "answer": str(i)} for i in range(10)],
        "holdout": [{"question": f"Which note is number {i}?", "answer": f"note {i}"} for i in range(6)],
    }


def write(folder: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], form: str = "jsonl") -> Path:
    """A table per file: `jsonl` as lines, `json` as an array, `parquet`, or `hub`, two shards each."""
    for name, rows in tables.items():
        stem = folder / name
        stem.parent.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), stem.with_name(f"{stem.name}.parquet"))
        elif form == "hub":
            half = len(rows) // 2
            for part, some in enumerate((rows[:half], rows[half:])):
                shard = stem.with_name(f"{stem.name}-{part:05}-of-00002.parquet")
                pq.write_table(pa.Table.from_pylist(list(some)), shard)
        elif form == "json":
            stem.with_name(f"{stem.name}.json").write_text(json.dumps(list(rows), indent=1))
        else:
            stem.with_name(f"{stem.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_all(root: Path) -> Path:
    """A mirror of everything, each benchmark in its published form where it is one of ours."""
    write_tofu(root, "json", tofu_tables())
    write(root / "muse-news", muse_tables("news"), "hub")
    write(root / "muse-books", muse_tables("books"))
    write(root / "mmlu", mmlu_tables(), "parquet")
    write(root / "wmdp", wmdp_tables(), "hub")
    write(root / "wikitext", wikitext_tables(), "hub")
    corpora = {"bio-forget": 80, "chem-forget": 70, "cyber-forget-corpus": 1000}
    write(root / "wmdp-corpora", {name: texts(name, rows) for name, rows in corpora.items()})
    write(root / "rwku" / "7_Ada_of_Example", rwku_tables(), "json")
    write(root / "custom" / "letters", letters())
    return root


def write_tofu(root: Path, form: str, tables: Tables) -> Path:
    """Write the tables under `root`/tofu: as published (json), as jsonl, as parquet, or as the hub's folders."""
    folder = root / "tofu"
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        if form == "folders":
            half = len(rows) // 2
            write(folder / name / "train", {"0000": rows[:half], "0001": rows[half:]}, "parquet")
        elif form == "json" and not name.startswith("holdout"):
            # Published as lines, whatever the suffix says; held-out rows as an array.
            (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            write(folder, {name: rows}, form)
    return root
