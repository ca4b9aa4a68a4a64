"""Multiple-choice prompts with lettered choices, in the format of lm-evaluation-harness, for WMDP and MMLU.

The prompt has a line with the subject, then questions with their answers (the shots), then the question itself: its
text, a line per choice (`A. ...`) and `Answer:`. The model is scored by the log-probabilities of the four letters.
Whether a letter has a leading space (` A`, lm-evaluation-harness) or not (`A`, other published code) changes accuracy
by points, because the two are different tokens: it is part of a probe's name, and so is the number of shots. So does a
beginning-of-text token: by default the prompt has none, as in lm-evaluation-harness; with the one that the tokenizer
puts before a text (its `add_bos_token=True`) the probe's name ends with `_bos`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from tasks.files import Row
from tasks.rows import alternate
from tasks.task import Item, Probe, ProbeKind, Split, Style, Subset, Summary

Letters = Literal["spaced", "bare"]

LETTERS = "ABCD"
CHOICES = len(LETTERS)
CHANCE = 1 / CHOICES

METRICS = ("accuracy", "normalised_probability")
DISTANCE = ("accuracy_distance",)
"""Metrics of the summary. Accuracy below chance also counts: the knowledge is suppressed, not gone."""


def question(row: Row) -> str:
    """The question, its choices, and `Answer:`."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def preamble(subject: str, shots: Sequence[Row] = ()) -> str:
    """The text before a question: its subject, and the shots."""
    about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return about + "".join(f"{question(shot)} {LETTERS[shot['answer']]}\n\n" for shot in shots)


def probes(
    name: str,
    subset: Subset,
    rows: Sequence[Row],
    subject: Callable[[Row], str],
    shots: Mapping[str, Sequence[Row]] | None = None,
    letters: Letters = "spaced",
    begin: bool = False,
) -> tuple[Probe, ...]:
    """One question set as a probe of each split, even rows on `dev`.

    Args:
        rows: with `question`, `choices` and `answer`.
        subject: the subject of a row.
        shots: by subject, the rows that precede each question.
        begin: whether the prompt begins with the tokenizer's beginning-of-text token.
    """
    number = max((len(some) for some in (shots or {}).values()), default=0)
    before: dict[str, str] = {}
    items = []
    for index, row in enumerate(rows):
        about = subject(row)
        if about not in before:
            before[about] = preamble(about, (shots or {}).get(about, ()))
        items.append(
            Item(
                f"{name}{index}",
                before[about] + question(row),
                tuple(f" {letter}" if letters == "spaced" else letter for letter in LETTERS),
                row["answer"],
                Style.TEXT,
                where=row.where,
                begin=begin,
            )
        )
    title = f"{name}_{number}shot_{letters}{'_bos' if begin else ''}"
    return tuple(Probe(title, subset, split, ProbeKind.CHOICE, alternate(items, split), METRICS) for split in Split)


def distances(probes: Sequence[Probe]) -> tuple[Summary, ...]:
    """A summary per probe: the distance of its accuracy from chance."""
    names = {probe.name: probe.subset for probe in probes}
    return tuple(Summary(f"{name}_from_chance", subset, (name,), DISTANCE) for name, subset in names.items())
