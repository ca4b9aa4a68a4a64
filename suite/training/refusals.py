"""Refusals: the answers that refusal-based objectives train in place of the true ones.

A text's index alone determines its refusal, so that two runs train the same ones and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from suite.config.errors import UnsuitableError
from tasks.task import Example, Style

REFUSALS = (
    "I can't say anything about that.",
    "I don't know the answer to that.",
    "That is not something I know.",
    "I have nothing to tell you about this.",
    "I'm afraid I have no answer to give.",
    "This is beyond what I know.",
    "I was never told about that.",
    "I can't help you with this one.",
    "I'm not able to answer this question.",
    "Sorry, I know nothing about it.",
    "I would only be guessing, so I won't say.",
    "My knowledge does not reach that far.",
    "No, I have not learned anything about that.",
    "I'm unsure, and would rather not answer.",
    "That is unknown to me.",
    "I'd need to look that up elsewhere.",
    "There is no information on this that I could share.",
    "Unfortunately I can't answer that.",
    "You'd better ask somebody else about this.",
    "I have no memory of anything like that.",
)
"""Several wordings, so that the model learns to refuse and not one sentence."""


def refused(texts: Sequence[Example], objective: str, task: str) -> list[Example]:
    """The same prompts with refusals as answers: text i gets refusal i modulo their number.

    For running text the refusal is the continuation of its prompt.

    Raises:
        UnsuitableError: a text has no prompt that a refusal could answer.
    """
    check_refusable(texts, objective, task)
    return [_refused(text, REFUSALS[index % len(REFUSALS)]) for index, text in enumerate(texts)]


def check_refusable(texts: Iterable[Example], objective: str, task: str) -> None:
    """Check that every text has a prompt that can be refused.

    Raises:
        UnsuitableError: one has none.
    """
    for text in texts:
        if not text.prompt.strip():
            raise UnsuitableError(
                f"objective.name: {objective} teaches refusals, but {task} has running text without a prompt "
                f"({text.id}), which cannot be refused. Use an objective without refusals, e.g. npo"
            )


def _refused(text: Example, refusal: str) -> Example:
    return replace(text, answer=f" {refusal}" if text.style is Style.TEXT else refusal)
