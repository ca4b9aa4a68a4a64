"""Optional measurements besides a task's own: general ability, fluency on other text, costly membership scores.

An extra returns a task with more probes, on both splits, and summaries of them. Training texts stay as they are, and
only `gradient_norm` changes probes that the task has: the membership probes get one more metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tasks import choices, membership, mmlu, wikitext
from tasks.rows import alternate, read_back
from tasks.task import Need, Probe, ProbeKind, Split, Subset, Summary, Task, TaskError

WIKITEXT_TOKENS = 512
"""Longer paragraphs are truncated: they are few, and may not fit a small model's context."""


def with_mmlu(task: Task) -> Task:
    """MMLU: 14,042 questions, zero-shot, five-shot, and zero-shot with bare letters or a beginning-of-text token.

    Raises:
        TaskError: the data is not available, or not as published.
    """
    rows = mmlu.table("test")
    probes = [
        *mmlu.probes(rows),
        *mmlu.probes(rows, few=True),
        *mmlu.probes(rows, letters="bare"),
        *mmlu.probes(rows, begin=True),
    ]
    return _with(task, probes, choices.distances(probes))


def with_wikitext(task: Task) -> Task:
    """Perplexity on WikiText-2: paragraphs of more than 50 characters of its test split.

    Raises:
        TaskError: the data is not available, or not as published.
    """
    items = read_back("wikitext", wikitext.paragraphs("test"))
    probes = [
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
    return _with(task, probes, [Summary("wikitext", Subset.RETAIN, ("wikitext_text",), ("perplexity",))])


def with_gradient_norm(task: Task) -> Task:
    """The norm of the loss's gradient as one more membership score: a backward pass per text.

    Raises:
        TaskError: the task has no membership summary.
    """
    old = next((summary for summary in task.summaries if summary.name == membership.NAME), None)
    if old is None:
        raise TaskError(f"task {task.name}: nothing is asked about membership, so gradient_norm has nothing to add to")
    probes = tuple(
        replace(probe, metrics=(*probe.metrics, "gradient_norm"), needs=(*probe.needs, Need.GRADIENT_NORM))
        if probe.name in old.probes
        else probe
        for probe in task.probes
    )
    new = replace(old, metrics=(*old.metrics, "auc_gradient_norm"))
    return replace(task, probes=probes, summaries=tuple(new if s is old else s for s in task.summaries))


def _with(task: Task, probes: Iterable[Probe], summaries: Iterable[Summary]) -> Task:
    """The task with these probes and summaries added, except those whose name it has already."""
    existing = {probe.name for probe in task.probes} | {summary.name for summary in task.summaries}
    return replace(
        task,
        probes=(*task.probes, *(probe for probe in probes if probe.name not in existing)),
        summaries=(*task.summaries, *(summary for summary in summaries if summary.name not in existing)),
    )


EXTRAS: dict[str, Callable[[Task], Task]] = {
    "mmlu": with_mmlu,
    "wikitext": with_wikitext,
    "gradient_norm": with_gradient_norm,
}
