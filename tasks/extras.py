"""What may be measured besides a task's own probes: general ability, fluency on other text, costly membership scores.

An extra takes a task and gives it back with more probes, on both splits, and summaries of them. It changes nothing of
what is taught, and no probe that the task has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tasks import choices, membership, mmlu, wikitext
from tasks.rows import alternate, read_back
from tasks.task import Need, Probe, ProbeKind, Split, Subset, Summary, Task, TaskError

WIKITEXT_TOKENS = 512
"""Longer paragraphs are cut: there are few, and a small model's context need not hold them."""


def with_mmlu(task: Task) -> Task:
    """MMLU: 14,042 questions on their own, after five others, and with bare letters.

    Raises:
        TaskError: the data is not to be had, or is not as published.
    """
    rows = mmlu.table("test")
    asked = [*mmlu.probes(rows), *mmlu.probes(rows, few=True), *mmlu.probes(rows, letters="bare")]
    return _with(task, asked, choices.distances(asked))


def with_wikitext(task: Task) -> Task:
    """Perplexity of WikiText-2: paragraphs of more than 50 characters of its test split.

    Raises:
        TaskError: the data is not to be had, or is not as published.
    """
    items = read_back("wikitext", wikitext.paragraphs("test"))
    asked = [
        Probe(
            "wikitext_text",
            Subset.RETAIN,
            split,
            ProbeKind.LOGPROB,
            alternate(items, split),
            ("loss",),
            max_tokens=WIKITEXT_TOKENS,
        )
        for split in Split
    ]
    return _with(task, asked, [Summary("wikitext", Subset.RETAIN, ("wikitext_text",), ("perplexity",))])


def with_gradient_norm(task: Task) -> Task:
    """The norm of the loss's gradient as one more membership score: a backward pass per text.

    Raises:
        TaskError: the task has no membership summary.
    """
    of = {summary.name: summary for summary in task.summaries}.get(membership.NAME)
    if of is None:
        raise TaskError(f"task {task.name}: nothing is asked about membership, so gradient_norm has nothing to add to")
    probes = tuple(
        replace(probe, metrics=(*probe.metrics, "gradient_norm"), needs=(*probe.needs, Need.GRADIENT_NORM))
        if probe.name in of.probes
        else probe
        for probe in task.probes
    )
    more = replace(of, metrics=(*of.metrics, "auc_gradient_norm"))
    return replace(task, probes=probes, summaries=tuple(more if s is of else s for s in task.summaries))


def _with(task: Task, probes: Iterable[Probe], summaries: Iterable[Summary]) -> Task:
    """The task with these as well. What it has already stays as it is."""
    there = {probe.name for probe in task.probes} | {summary.name for summary in task.summaries}
    return replace(
        task,
        probes=(*task.probes, *(probe for probe in probes if probe.name not in there)),
        summaries=(*task.summaries, *(summary for summary in summaries if summary.name not in there)),
    )


EXTRAS: dict[str, Callable[[Task], Task]] = {
    "mmlu": with_mmlu,
    "wikitext": with_wikitext,
    "gradient_norm": with_gradient_norm,
}
